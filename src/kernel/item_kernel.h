// What every work item has, however its products are made: state, bounds of its units, and the end of its rows.
#pragma once

#include <algorithm>

#include "kernel/finish.h"
#include "kernel/rules.h"
#include "kernel/softmax.h"
#include "quant/queries.h"

namespace clary {

template <class V, class S>
class ItemKernel {
 protected:
  using F32 = typename V::F32;
  using MaskState = typename Rules<V, S>::MaskState;

  explicit ItemKernel(const AttendArgs& args) : a_(args), s_(make_state(args)), rules_(args, s_), softmax_(s_) {}

  static ItemState make_state(const AttendArgs& args) {
    Arena arena(args.scratch);
    return lay_out_item(arena, *args.sizes, mask_blocks(*args.problem));
  }

  // Queries, bounds, mask, softmax: everything before the first block.
  void begin() {
    Queries<V, S>(a_, s_).load();
    find_bounds();
    rules_.survey_mask();
    softmax_.reset(a_.sizes->value_width);
  }

  // rows_at_once: of the products.
  Unit unit_of(int row, int64_t block, int rows_at_once) const {
    Unit u;
    u.first_row = row, u.block = block;
    u.real_rows = a_.count - row < kUnitRows ? a_.count - row : kUnitRows;
    u.rows = static_cast<int>(round_up(u.real_rows, rows_at_once));
    return u;
  }

  // What the rows of a unit see together and all alike, and how large their scores can be.
  struct UnitBounds {
    int64_t low = INT64_MAX, high = 0, inner_low = 0, inner_high = INT64_MAX;
    float reach = 0;
  };

  void find_bounds() {
    for (int r = 0; r < a_.count; ++r) {
      UnitBounds& b = bounds_[r / kUnitRows];
      const KeyRange range = s_.range[r];
      if (s_.reach[r] > b.reach) b.reach = s_.reach[r];
      if (range.begin > b.inner_low) b.inner_low = range.begin;
      if (range.end < b.inner_high) b.inner_high = range.end;
      if (range.begin >= range.end) continue;
      if (range.begin < b.low) b.low = range.begin;
      if (range.end > b.high) b.high = range.end;
    }
  }

  // Finds the panels of the block that any row of the unit sees, and the last key; false if there is none. Tiles, and
  // what overlaps units of whole blocks, know whole panels only. `in_range`: all rows see all of them, as far as
  // causality, window and length go.
  bool find_panels(Unit& u, bool& in_range) const {
    const UnitBounds& b = bounds(u);
    const int64_t first = u.block * kBlockKeys;
    const int64_t end = first + kBlockKeys < a_.sequence.len_k ? first + kBlockKeys : a_.sequence.len_k;
    const int64_t low = b.low < first ? first : b.low, high = b.high > end ? end : b.high;
    if (low >= high) return false;
    u.panel_begin = static_cast<int>((low - first) / kPanelKeys);
    u.panel_end = static_cast<int>((high - first + kPanelKeys - 1) / kPanelKeys);
    const bool whole = kUsesTiles<V, S> || (kUsesPipeline<V, S> && u.panel_end == kPanels);
    u.seen_keys = static_cast<int>(whole ? u.panel_end * kPanelKeys : high - first);
    const int64_t keys_end = first + u.end_key() < end ? first + u.end_key() : end;
    in_range = b.inner_low <= first + u.first_key() && b.inner_high >= keys_end;
    return true;
  }
  // full: no score is changed, and none is hidden but by the bias of its key or, in fixed point, edges of ranges.
  enum class Tile : uint8_t { skipped, full, masked, unmasked_partial };

  // What to do about a unit of 16 rows; finds its panels, and whether it has edges.
  Tile classify(Unit& u) const {
    bool in_range = false;
    if (!find_panels(u, in_range)) return Tile::skipped;
    const BlockLive live = live_keys(u);
    if (live.panels == 0) return Tile::skipped;
    while ((live.panels >> u.panel_begin & 1) == 0) ++u.panel_begin;
    while ((live.panels >> (u.panel_end - 1) & 1) == 0) --u.panel_end;
    if constexpr (!kUsesTiles<V, S>) u.seen_keys = std::min({u.seen_keys, int{live.end}, u.panel_end * kPanelKeys});
    const MaskState mask = rules_.look_at_mask(u);
    if (mask == MaskState::hides_all) return Tile::skipped;
    if (mask == MaskState::hides_some) return Tile::masked;
    u.edges = S::kFixedPoint && !in_range;
    const bool full =
        (in_range || u.edges) && is_whole(u, live) && !a_.problem->changes_scores() && within_reach(u, kFixedReach);
    if constexpr (V::kQuarters) u.plain = live.all && ends_within(u) && within_reach(u, kPlainReach);
    return full ? Tile::full : Tile::unmasked_partial;
  }

  // What a folded mask leaves of the block, to all rows of the unit together; of the unit's panels only.
  BlockLive live_keys(const Unit& u) const {
    const unsigned panels = (1u << u.panel_end) - (1u << u.panel_begin);
    const BlockLive* blocks = a_.head->block_live + u.block;
    BlockLive live;
    const int heads = a_.head->block_live_stride == 0 ? 1 : u.real_rows;
    for (int r = u.first_row; r < u.first_row + heads; ++r) {
      const int64_t head = a_.rows[r].head - a_.head_kv * a_.problem->group;
      const BlockLive& one = blocks[head * a_.head->block_live_stride];
      live.panels = static_cast<uint8_t>(live.panels | (one.panels & panels));
      live.all = live.all && one.all;
      live.end = std::max(live.end, one.end);
    }
    return live;
  }

  // On tiles the fused form knows no hidden key at all, padding included.
  bool is_whole(const Unit& u, const BlockLive& live) const {
    return !kUsesTiles<V, S> || (live.all && ends_within(u));
  }

  // Whether its panels have no padding.
  bool ends_within(const Unit& u) const { return u.block * kBlockKeys + u.end_key() <= a_.sequence.len_k; }

  // Fast fixed point holds +-512 octaves = 32768 units; the margin covers the rounding of the bound itself.
  static constexpr float kFixedReach = 31000;
  // Where nobody has to saturate. Codes may be longer than what they stand for, at head dim 256 by 7 % in bytes and by
  // 107 % in 4 bits (each channel off by half a step, 1/30 of a range that is at most twice the key's length):
  // 12000 * 1.07 * 2.07 = 26600.
  static constexpr float kPlainReach = 12000;
  bool within_reach(const Unit& u, float most) const {
    if constexpr (!S::kFixedPoint) return true;
    return bounds(u).reach * a_.head->block_norm[u.block] < most;
  }

  // Rows that see a non-finite key or value, or whose logits may lie beyond `octaves`. Rows with a non-finite query are
  // known.
  void find_exact_rows(float octaves) {
    for (int64_t block = a_.block_begin; block < a_.block_end; ++block) {
      const bool nonfinite = a_.head->block_nonfinite[block] != 0;
      const float norm = a_.head->block_norm[block];
      for (int r = 0; r < a_.count; ++r) {
        if (!(s_.reach[r] * norm <= octaves * S::kUnitsPerOctave)) s_.exact[r] = 1;
        if (nonfinite && s_.exact[r] == 0) s_.exact[r] = sees_nonfinite(r, block) ? 1 : 0;
      }
    }
  }

  bool sees_nonfinite(int r, int64_t block) const {
    const KeyRange range = s_.range[r];
    const int64_t first = block * kBlockKeys;
    for (int64_t j = first < range.begin ? range.begin : first; j < first + kBlockKeys && j < range.end; ++j)
      if (a_.head->nonfinite[j] != 0 && a_.problem->mask_shows(a_.sequence_index, a_.rows[r].head, a_.rows[r].query, j))
        return true;
    return false;
  }

  const UnitBounds& bounds(const Unit& u) const { return bounds_[u.first_row / kUnitRows]; }

  float row_m(int r) const {
    if constexpr (!S::kFixedPoint) return s_.m[r];
    int32_t units = 0;
    std::memcpy(&units, s_.m + r, 4);
    return units == kNone ? -std::numeric_limits<float>::infinity() : static_cast<float>(units) / S::kUnitsPerOctave;
  }

  // A probability of 1 is 255 in P, where the value scales take it back, and 32 * 255 = 8160 in the sums.
  static constexpr float kSumScale = S::kFixedPoint ? 1.0f / 8160 : 1.0f;
  float row_l(int r) const { return V::reduce_add(V::load(s_.l + r * 16)) * kSumScale; }

  // With a softcap the constant is in the scores already.
  float row_constant(int r) const { return a_.problem->softcap > 0 ? 0 : s_.constant[r] / S::kUnitsPerOctave; }

  void store_partial() {
    const int width = a_.sizes->value_width;
    for (int r = 0; r < a_.count; ++r) {
      a_.partial[r] = {row_m(r), row_l(r), row_constant(r), s_.exact[r]};
      std::memcpy(a_.partial_out + int64_t{r} * width, s_.o + int64_t{r} * width, static_cast<size_t>(width) * 4);
    }
  }

  void finish() {
    for (int r = 0; r < a_.count; ++r)
      finish_row<V>(a_, a_.rows[r], {row_m(r), row_l(r), row_constant(r), s_.exact[r]},
                    s_.o + int64_t{r} * a_.sizes->value_width);
  }

  void end() { a_.partial != nullptr ? store_partial() : finish(); }

  const AttendArgs& a_;
  ItemState s_;
  UnitBounds bounds_[(kUsesTiles<V, S> ? kTileItemRows : kItemRows) / kUnitRows];
  Rules<V, S> rules_;
  Softmax<V, S> softmax_;
};

}  // namespace clary
