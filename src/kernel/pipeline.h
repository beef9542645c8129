// Consecutive full units of the fixed-point softmax, overlapped: the ports that products leave idle do the softmax.
//
//   QK of unit u        beside   exponentials of unit u-1     one panel of one row per turn: 16 tiles x 4 turns
//   PV of unit u-1      beside   row maxima of unit u
//
// Every unit goes through the same operations in the same order as without the overlap, so the bits are the same.
// Measured on Zen 4: +5 % at head dim 64, +2 % at 128 over the plain order (docs/performance.md).
#pragma once

#include "kernel/accumulate.h"
#include "kernel/softmax.h"

namespace clary {

template <class V, class S>
class Pipeline {
 public:
  // Overlap needs accumulators and the temporaries of a hook in registers at once (21 + 7 of 32).
  static constexpr bool kUsed = S::kFixedPoint && V::kOverlaps;

  Pipeline(Scores<V, S>& scores, Softmax<V, S>& softmax, Accumulate<V, S>& accumulate)
      : scores_(scores), softmax_(softmax), accumulate_(accumulate) {}

  static bool takes(const Unit& u) {
    return kUsed && u.rows == kUnitRows && u.panel_begin == 0 && u.panel_end == kPanels;
  }

  void push(Unit u) {
    u.buffer = pending_.buffer ^ 1;
    if (!busy_) {
      scores_.fixed(u);
      if (u.edges) softmax_.hide_edges(u);
      for (int r = 0; r < kUnitRows; ++r) softmax_.find_top(u, r);
    } else {
      softmax_.update(pending_);
      scores_and_exponentials(u);
      if (u.edges) softmax_.hide_edges(u);
      products_and_tops(u);
    }
    pending_ = u;
    busy_ = true;
  }

  // Finishes the last unit. Its keys are done with (INT4 ones may be overwritten), its values are not.
  void drain() {
    if (!busy_) return;
    softmax_.update(pending_);
    for (int r = 0; r < kUnitRows; ++r) {
      I16 sum = V::set_i16(0);
      for (int panel = 0; panel < kPanels; ++panel) softmax_.exponentials(pending_, r, panel, row_top(r), sum);
      softmax_.add_sums(pending_, r, sum);
    }
    accumulate_.template run<true>(pending_);
    busy_ = false;
  }

 private:
  using I16 = typename V::I16;

  int16_t row_top(int r) const { return static_cast<int16_t>(softmax_.top(pending_)[r]); }

  // Head dims 64 and 128 know their steps when they are compiled.
  void scores_and_exponentials(const Unit& u) {
    constexpr int kSteps = 64 / elements_per_step(S::kQk);
    switch (scores_.steps()) {
      case kSteps: return scores_and_exponentials<kSteps>(u);
      case 2 * kSteps: return scores_and_exponentials<2 * kSteps>(u);
      default: return scores_and_exponentials<0>(u);
    }
  }

  // Register tile number t of QK carries row t of the pending unit.
  template <int Steps>
  [[gnu::noinline]] void scores_and_exponentials(const Unit& u) {
    I16 sum;
    scores_.template fixed<Steps>(
        u, [&](int tile, auto turn) __attribute__((always_inline)) {
          if constexpr (turn == 0) sum = V::set_i16(0);
          softmax_.exponentials(pending_, tile, turn, row_top(tile), sum);
          if constexpr (turn == kHooks - 1) softmax_.add_sums(pending_, tile, sum);
        });
  }

  [[gnu::noinline]] void products_and_tops(const Unit& u) {
    int row = 0;
    accumulate_.template run<true>(
        pending_, [&](int, auto) __attribute__((always_inline)) {
          if (row < kUnitRows) softmax_.find_top(u, row++);
        });
    for (; row < kUnitRows; ++row) softmax_.find_top(u, row);
  }

  Scores<V, S>& scores_;
  Softmax<V, S>& softmax_;
  Accumulate<V, S>& accumulate_;
  Unit pending_;
  bool busy_ = false;
};

}  // namespace clary
