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
#include "kernel/item_kernel.h"
#include "kernel/pipeline.h"

namespace clary {

template <class V, class S>
class Attend : ItemKernel<V, S> {
 public:
  explicit Attend(const AttendArgs& args)
      : Base(args), scores_(args, s_), accumulate_(args, s_), pipeline_(scores_, softmax_, accumulate_) {}

  void run() {
    this->begin();
    find_exact_rows();
    for (int64_t block = a_.block_begin; block < a_.block_end; ++block) {
      bool unpacked = S::kQk != Element::i4;
      for (int row = 0; row < a_.count; row += kUnitRows) {
        Unit u = this->unit_of(row, block, kRowsAtOnce);
        const Tile tile = classify(u);
        if (tile == Tile::skipped) continue;
        if (!unpacked) scores_.unpack(block), unpacked = true;
        run_unit(u, tile);
      }
    }
    if constexpr (Pipeline<V, S>::kUsed) pipeline_.drain();
    this->end();
  }

 private:
  using Base = ItemKernel<V, S>;
  using Base::a_, Base::s_, Base::rules_, Base::softmax_;
  using MaskState = typename Rules<V, S>::MaskState;
  enum class Tile : uint8_t { skipped, full, masked, unmasked_partial };
  static constexpr int kRowsAtOnce =
      Scores<V, S>::Qk::kRows > Accumulate<V, S>::Pv::kRows ? Scores<V, S>::Qk::kRows : Accumulate<V, S>::Pv::kRows;
  // Fast fixed point holds +-512 octaves = 32768 units; the margin covers the rounding of the bound itself.
  static constexpr float kFixedReach = 31000;
  // Beyond +-4096 octaves (2840 nats) INT8 cannot tell neighbouring logits apart: the row is computed exactly.
  static constexpr float kIntegerReach = 4096;

  Tile classify(Unit& u) const {
    bool in_range = false;
    if (!this->find_panels(u, in_range)) return Tile::skipped;
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
    return this->bounds(u).reach * a_.head->block_norm[u.block] < kFixedReach;
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

  Scores<V, S> scores_;
  Accumulate<V, S> accumulate_;
  Pipeline<V, S> pipeline_;
};

}  // namespace clary
