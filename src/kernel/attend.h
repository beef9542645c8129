// One work item from Q to output: the tile loop, written once for every precision and instruction set.
//
//   load and quantise up to 128 query rows
//   for each block of 256 keys that any of them sees
//     for each unit of 16 rows
//       scores -> (rules, where a tile is not fully visible) -> softmax -> O += P V
//   normalise, or hand on the partial result
//
// K and V of a block (64 KB at head dim 128 in INT8) come from L2 for each unit; scores and P never leave L1.
// Source of the loop: FlashAttention-2; of the skipping of invisible tiles: block-sparse FlashAttention.
#pragma once

#include "kernel/accumulate.h"
#include "kernel/finish.h"
#include "kernel/pipeline.h"
#include "kernel/rules.h"
#include "kernel/softmax.h"
#include "quant/queries.h"

namespace clary {

template <class V, class S>
class Attend {
 public:
  explicit Attend(const AttendArgs& args)
      : a_(args),
        s_(make_state(args)),
        scores_(args, s_),
        rules_(args, s_),
        softmax_(s_),
        accumulate_(args, s_),
        pipeline_(s_, scores_, softmax_, accumulate_) {}

  void run() {
    Queries<V, S>(a_, s_).load();
    find_exact_rows();
    find_bounds();
    rules_.survey_mask();
    softmax_.reset(a_.sizes->value_width);
    for (int64_t block = a_.block_begin; block < a_.block_end; ++block) {
      bool unpacked = S::kQk != Element::i4;
      for (int row = 0; row < a_.count; row += kUnitRows) {
        Unit u = unit_of(row, block);
        const Tile tile = classify(u);
        if (tile == Tile::skipped) continue;
        if (!unpacked) scores_.unpack(block), unpacked = true;
        run_unit(u, tile);
      }
    }
    if constexpr (Pipeline<V, S>::kUsed) pipeline_.drain();
    a_.partial != nullptr ? store_partial() : finish();
  }

 private:
  using F32 = typename V::F32;
  enum class Tile : uint8_t { skipped, full, masked, unmasked_partial };
  // Fast fixed point holds +-512 octaves = 32768 units; the margin covers the rounding of the bound itself.
  static constexpr float kFixedReach = 31000;
  // Beyond +-4096 octaves (2840 nats) INT8 cannot tell neighbouring logits apart: the row is computed exactly.
  static constexpr float kIntegerReach = 4096;

  static ItemState make_state(const AttendArgs& args) {
    Arena arena(args.scratch);
    return lay_out_item(arena, *args.sizes, args.problem->dim_qk, mask_blocks(*args.problem));
  }

  Unit unit_of(int row, int64_t block) const {
    Unit u;
    u.first_row = row, u.block = block;
    u.real_rows = a_.count - row < kUnitRows ? a_.count - row : kUnitRows;
    constexpr int kRows =
        Scores<V, S>::Qk::kRows > Accumulate<V, S>::Pv::kRows ? Scores<V, S>::Qk::kRows : Accumulate<V, S>::Pv::kRows;
    u.rows = static_cast<int>(round_up(u.real_rows, kRows));
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

  // Which panels of the block any row of the unit sees, and whether all rows see all of them.
  Tile classify(Unit& u) const {
    const UnitBounds& b = bounds_[u.first_row / kUnitRows];
    const int64_t first = u.block * kBlockKeys;
    const int64_t end = first + kBlockKeys < a_.sequence.len_k ? first + kBlockKeys : a_.sequence.len_k;
    const int64_t low = b.low < first ? first : b.low, high = b.high > end ? end : b.high;
    if (low >= high) return Tile::skipped;
    u.panel_begin = static_cast<int>((low - first) / kPanelKeys);
    u.panel_end = static_cast<int>((high - first + kPanelKeys - 1) / kPanelKeys);
    const int64_t panels_end = first + u.panel_end * kPanelKeys < end ? first + u.panel_end * kPanelKeys : end;
    const bool in_range = b.inner_low <= first + u.panel_begin * kPanelKeys && b.inner_high >= panels_end;
    return classify_content(u, in_range);
  }

  Tile classify_content(const Unit& u, bool in_range) const {
    using MaskState = typename Rules<V, S>::MaskState;
    const int live = live_rows(u);
    if (live == 0) return Tile::skipped;
    const MaskState mask = rules_.look_at_mask(u);
    if (mask == MaskState::hides_all) return Tile::skipped;
    if (mask == MaskState::hides_some) return Tile::masked;
    // A folded mask may hide all keys of some panels, which only the general form can stand.
    const bool whole = !a_.mask_folded || (live == u.real_rows && u.panel_begin == 0 && in_whole_block(u));
    const bool plain = in_range && whole && !a_.problem->changes_scores() && within_reach(u);
    return plain ? Tile::full : Tile::unmasked_partial;
  }

  bool in_whole_block(const Unit& u) const {
    return u.block * kBlockKeys + u.panel_end * kPanelKeys >= a_.sequence.len_k || u.panel_end == kPanels;
  }

  int live_rows(const Unit& u) const {
    const uint8_t* live = a_.head->block_live + u.block;
    if (a_.head->block_live_stride == 0) return *live != 0 ? u.real_rows : 0;
    int count = 0;
    for (int r = u.first_row; r < u.first_row + u.real_rows; ++r)
      count += live[(a_.rows[r].head - a_.head_kv * a_.problem->group) * a_.head->block_live_stride];
    return count;
  }

  bool within_reach(const Unit& u) const {
    if constexpr (!S::kFixedPoint) return true;
    return bounds_[u.first_row / kUnitRows].reach * a_.head->block_norm[u.block] < kFixedReach;
  }

  void run_unit(const Unit& u, Tile tile) {
    if constexpr (Pipeline<V, S>::kUsed) {
      if (tile == Tile::full && pipeline_.takes(u)) return pipeline_.push(u);
      pipeline_.drain();
    }
    if (tile == Tile::full) {
      if constexpr (S::kFixedPoint) {
        scores_.fixed(u);
        softmax_.fixed(u);
      } else {
        scores_.natural(u);
        softmax_.floating(u);
      }
    } else {
      scores_.natural(u);
      rules_.apply(u, tile == Tile::masked);
      if constexpr (S::kFixedPoint) {
        softmax_.fixed_from_natural(u);
      } else {
        softmax_.floating(u);
      }
    }
    accumulate_.run(u);
  }

  // Rows that see a non-finite key or value, or whose logits INT8 cannot hold. Rows with a non-finite query are known.
  void find_exact_rows() {
    for (int64_t block = a_.block_begin; block < a_.block_end; ++block) {
      const bool nonfinite = a_.head->block_nonfinite[block] != 0;
      const float norm = a_.head->block_norm[block];
      for (int r = 0; r < a_.count; ++r) {
        if (S::kIntegerQk && !(s_.reach[r] * norm < kIntegerReach * S::kUnitsPerOctave)) s_.exact[r] = 1;
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

  const AttendArgs& a_;
  ItemState s_;
  UnitBounds bounds_[kItemRows / kUnitRows];
  Scores<V, S> scores_;
  Rules<V, S> rules_;
  Softmax<V, S> softmax_;
  Accumulate<V, S> accumulate_;
  Pipeline<V, S> pipeline_;
};

}  // namespace clary
