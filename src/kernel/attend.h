// One work item from Q to output: the tile loop, written once for every precision and instruction set.
//
//   load and quantise up to 128 query rows
//   for each block of 256 keys that any of them sees
//     for each unit of 16 rows
//       scores -> (rules, where keys have other scores or are hidden) -> softmax -> O += P V
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
    this->find_exact_rows(kIntegerReach);
    for (int64_t block = a_.block_begin; block < a_.block_end; ++block) {
      bool unpacked = S::kQk != Element::i4;
      for (int row = 0; row < a_.count; row += kUnitRows) {
        Unit u = this->unit_of(row, block, kRowsAtOnce);
        const Tile tile = this->classify(u);
        if (tile == Tile::skipped) continue;
        if (!unpacked) scores_.unpack(block), unpacked = true;
        run_unit(u, tile);
      }
    }
    if constexpr (kUsesPipeline<V, S>) pipeline_.drain();
    this->end();
  }

 private:
  using Base = ItemKernel<V, S>;
  using Base::a_, Base::s_, Base::rules_, Base::softmax_;
  using Tile = typename Base::Tile;
  static constexpr int kRowsAtOnce =
      Scores<V, S>::Qk::kRows > Accumulate<V, S>::Pv::kRows ? Scores<V, S>::Qk::kRows : Accumulate<V, S>::Pv::kRows;
  // Beyond +-4096 octaves (2840 nats) INT8 cannot tell neighbouring logits apart: the row is computed exactly.
  static constexpr float kIntegerReach = S::kIntegerQk ? 4096 : std::numeric_limits<float>::infinity();

  void run_unit(const Unit& u, Tile tile) {
    if constexpr (kUsesPipeline<V, S>) {
      if (tile == Tile::full && pipeline_.takes(u)) return pipeline_.push(u);
      pipeline_.drain();
    }
    if (tile == Tile::full) {
      if constexpr (S::kFixedPoint) {
        scores_.fixed(u);
        if (u.edges) softmax_.hide_edges(u);
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

  Scores<V, S> scores_;
  Accumulate<V, S> accumulate_;
  Pipeline<V, S> pipeline_;
};

}  // namespace clary
