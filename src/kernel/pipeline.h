// Consecutive full units, overlapped: the ports that products leave idle do the softmax.
//
//   QK of unit u        beside   exponentials of unit u-1     one panel of one row per turn: 16 tiles x 4 turns
//   PV of unit u-1      beside   row maxima of unit u
//
// Scores in f32 (P in bf16) have one buffer: the turns of a tile do the exponentials of those that the tile replaces.
// Every unit goes through the same operations in the same order as without the overlap, so the bits are the same.
// docs/performance.md has what it gains.
#pragma once

#include "kernel/accumulate.h"
#include "kernel/softmax.h"

namespace clary {

template <class V, class S>
class Pipeline {
 public:
  Pipeline(Scores<V, S>& scores, Softmax<V, S>& softmax, Accumulate<V, S>& accumulate)
      : scores_(scores), softmax_(softmax), accumulate_(accumulate) {}

  static bool takes(const Unit& u) {
    return kUsesPipeline<V, S> && u.rows == kUnitRows && u.panel_begin == 0 && u.panel_end == kPanels;
  }

  void push(Unit u) {
    u.buffer = pending_.buffer ^ 1;
    u.seen_keys = kBlockKeys;
    if (!busy_) {
      scores<0>(u, NoHook());
      if (u.edges) softmax_.hide_edges(u);
      for (int r = 0; r < kUnitRows; ++r) find_top(u, r);
    } else {
      update();
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
    update();
    for (int r = 0; r < kUnitRows; ++r) {
      I16 sum;
      unroll<kPanels>([&](auto panel) { exponentials(r, panel, sum); });
    }
    if constexpr (!S::kFixedPoint) softmax_.add_floating_sums(pending_);
    accumulate_.template run<true>(pending_);
    busy_ = false;
  }

 private:
  using I16 = typename V::I16;

  template <int Steps, class Hook>
  [[gnu::always_inline]] void scores(const Unit& u, Hook&& hook) {
    if constexpr (S::kFixedPoint) {
      scores_.template fixed<Steps>(u, hook);
    } else {
      scores_.template natural<Steps>(u, hook);
    }
  }
  [[gnu::always_inline]] void find_top(const Unit& u, int r) {
    if constexpr (S::kFixedPoint) {
      softmax_.find_top(u, r);
    } else {
      softmax_.find_floating_top(u, r);
    }
  }
  void update() {
    if constexpr (S::kFixedPoint) {
      softmax_.update(pending_);
    } else {
      softmax_.update_floating(pending_);
    }
  }
  // Of the pending unit; panels of a row in their order, with `sum` (fixed point) from one to the next.
  template <int Panel>
  [[gnu::always_inline]] void exponentials(int r, std::integral_constant<int, Panel> panel, I16& sum) {
    if constexpr (S::kFixedPoint) {
      if constexpr (Panel == 0) sum = V::set_i16(0);
      softmax_.exponentials(pending_, r, panel, static_cast<int16_t>(softmax_.top(pending_)[r]), sum);
      if constexpr (Panel == kPanels - 1) softmax_.add_sums(pending_, r, sum);
    } else {
      softmax_.floating_exponentials(r, panel);
    }
  }

  // Head dims 64 and 128 know their steps when they are compiled.
  void scores_and_exponentials(const Unit& u) {
    constexpr int kSteps = 64 / elements_per_step(S::kQk);
    switch (scores_.steps()) {
      case kSteps: return scores_and_exponentials<kSteps>(u);
      case 2 * kSteps: return scores_and_exponentials<2 * kSteps>(u);
      default: return scores_and_exponentials<0>(u);
    }
  }

  // Fixed point: register tile number t of QK carries row t of the pending unit.
  template <int Steps>
  [[gnu::noinline]] void scores_and_exponentials(const Unit& u) {
    I16 sum;
    scores<Steps>(
        u, [&](int tile, auto turn) __attribute__((always_inline)) {
          if constexpr (S::kFixedPoint) {
            exponentials(tile, turn, sum);
          } else {
            softmax_.floating_exponentials(tile % kPanels * kHooks + turn, tile / kPanels);
          }
        });
  }
  static_assert(kHooks == kPanels && kHooks * kPanels == kUnitRows);

  [[gnu::noinline]] void products_and_tops(const Unit& u) {
    if constexpr (!S::kFixedPoint) softmax_.add_floating_sums(pending_);
    int row = 0;
    accumulate_.template run<true>(
        pending_, [&](int, auto) __attribute__((always_inline)) {
          if (row < kUnitRows) find_top(u, row++);
        });
    for (; row < kUnitRows; ++row) find_top(u, row);
  }

  Scores<V, S>& scores_;
  Softmax<V, S>& softmax_;
  Accumulate<V, S>& accumulate_;
  Unit pending_;
  bool busy_ = false;
};

}  // namespace clary
