// Scores of a unit: 16 rows x the panels of one block, in units of 1/kUnitsPerOctave octave.
//
//   product (i32 or f32) -> * key scale (+ zero point) -> * query scale + key bias -> i16 in packed order, or f32 in
//   natural order for whoever has to look at single keys
#pragma once

#include "kernel/item.h"
#include "kernel/product.h"

namespace clary {

// Where a unit stands: rows of the item, a block of keys, and which of its panels are visible.
struct Unit {
  int first_row = 0, rows = 0;  // rows: a multiple of what the product takes at once
  int real_rows = 0;
  int64_t block = 0;
  int panel_begin = 0, panel_end = 0;
  int seen_keys = 0;   // of the block, to the last one that any row sees
  int buffer = 0;      // which of the two s16 and top arrays is this unit's
  bool edges = false;  // fixed point: of its panels, rows see the keys of their ranges only
  bool plain = false;  // no key is hidden, and the scores are far from the bounds of fixed point

  // Nobody sees the second half of the last panel, and it is left out.
  bool half() const { return seen_keys <= panel_end * kPanelKeys - kHalfKeys; }
  // Keys of the block with scores, and how many they are.
  int first_key() const { return panel_begin * kPanelKeys; }
  int end_key() const { return panel_end * kPanelKeys - (half() ? kHalfKeys : 0); }
  int keys() const { return end_key() - first_key(); }
};

template <class V, class S>
class Scores {
 public:
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using Qk = Product<V, S::kQk, Unsigned::packed>;
  using Acc = typename Qk::Acc;

  Scores(const AttendArgs& args, const ItemState& state) : a_(args), s_(state), steps_(args.sizes->key_steps) {}

  // INT4 keys as bytes, once per block and item.
  void unpack(int64_t block) {
    if constexpr (S::kQk == Element::i4) {
      const auto* from = reinterpret_cast<const uint32_t*>(a_.head->keys + block * a_.sizes->key_block_bytes);
      const int64_t count = int64_t{kPanels} * steps_ / 2;
      const I32 low = V::set_i32(0x0f0f0f0f);
      for (int64_t i = 0; i < count; ++i)
        for (int v = 0; v < kPanelKeys; v += 16) {
          const I32 x = V::load_i32(from + i * kPanelKeys + v);
          V::store_i32(s_.unpacked + 2 * i * kPanelKeys + v, V::and_i32(x, low));
          V::store_i32(s_.unpacked + (2 * i + 1) * kPanelKeys + v, V::and_i32(V::template shift_right<4>(x), low));
        }
    }
  }

  int steps() const { return steps_; }

  // Into s16, saturating: for units whose scores are within +-512 octaves. Keys that the bias hides get the lowest.
  // Steps: of a product, where the caller knows them; 0: any. `hook`: see Product::run; called with the number of the
  // register tile and its turn.
  template <int Steps = 0, class Hook = NoHook>
  [[gnu::always_inline]] void fixed(const Unit& u, Hook&& hook = {}) {
    int16_t* s16 = s_.s16 + u.buffer * kUnitRows * kBlockKeys;
    if constexpr (V::kQuarters) {
      fixed_in_quarters(u, s16);
    } else {
      each_panel<Steps>(
          u,
          [&](int row, int key, F32 a, F32 b) __attribute__((always_inline)) {
            V::store_i16(s16 + row * kBlockKeys + key, V::pack_i16(V::to_i32(a), V::to_i32(b)));
          },
          hook);
    }
  }

  // Into s, in the order of the keys. Steps, `hook`: as above.
  template <int Steps = 0, class Hook = NoHook>
  [[gnu::always_inline]] void natural(const Unit& u, Hook&& hook = {}) {
    if constexpr (V::kQuarters) {
      const Factors f = factors();
      const auto start = [](int) __attribute__((always_inline)) { return V::set_i32(0); };
      each_vector(
          u, start, [&](int row, int key, Acc acc) __attribute__((always_inline)) {
            V::store(s_.s + row * kBlockKeys + key,
                     scale(f, u.first_row + row, u.block * kBlockKeys + key, to_f32(acc)));
          });
    } else {
      each_panel<Steps>(
          u,
          [&](int row, int key, F32 a, F32 b) __attribute__((always_inline)) {
            if constexpr (kByQuads<V, S>) V::interleave_quarters(a, b);
            float* to = s_.s + row * kBlockKeys + key;
            V::store(to, a), V::store(to + 16, b);
          },
          hook);
    }
  }

 private:
  const uint32_t* panel_keys(const Unit& u, int panel) const {
    if constexpr (S::kQk == Element::i4) return s_.unpacked + int64_t{panel} * steps_ * kPanelKeys;
    return reinterpret_cast<const uint32_t*>(a_.head->keys + u.block * a_.sizes->key_block_bytes) +
           int64_t{panel} * steps_ * kPanelKeys;
  }

  // Up to here sums of products of INT8 codes stay below 2^22, where integers and floats are the same bits.
  static constexpr int kSmallSteps = 64;

  void fixed_in_quarters(const Unit& u, int16_t* s16) {
    const bool small = u.plain && steps_ <= kSmallSteps;
    const I32 first = small ? V::small_sums() : V::set_i32(0);
    const Factors f = factors();
    const int first_row = u.first_row;
    const int64_t first_key = u.block * kBlockKeys;
    each_vector(
        u, [&](int) __attribute__((always_inline)) { return first; },
        [&](int row, int key, Acc acc) __attribute__((always_inline)) {
          int16_t* to = s16 + row * kBlockKeys + key;
          if (small) [[likely]] {
            V::store_small_words(to, scale(f, first_row + row, first_key + key, V::to_f32_small(acc)));
          } else {
            V::store_words(to, V::to_i32(scale(f, first_row + row, first_key + key, V::to_f32(acc))));
          }
        });
  }

  // body(row of the unit, first of 16 keys of the block, accumulators)
  template <class Start, class Body>
  [[gnu::always_inline]] void each_vector(const Unit& u, Start&& start, Body&& body) {
    const uint32_t* q = s_.q + u.first_row * s_.q_stride;
    const int rows = u.rows, end = u.panel_end;
    const auto emit = [&](int panel) __attribute__((always_inline)) {
      return [&body, panel ](int row, int n, Acc acc) __attribute__((always_inline)) {
        body(row, panel * kPanelKeys + n * 16, acc);
      };
    };
    for (int panel = u.panel_begin; panel < end; ++panel) {
      const uint32_t* keys = panel_keys(u, panel);
      if (panel == end - 1 && u.half()) {
        Qk::template run_in_quarters<2, 4>(q, s_.q_stride, keys, steps_, rows, start, emit(panel));
      } else {
        Qk::template run_in_quarters<4, 4>(q, s_.q_stride, keys, steps_, rows, start, emit(panel));
      }
    }
  }

  // body(row of the unit, first of 32 keys of the block, their scores). With a hook: whole panels only.
  template <int Steps, class Body, class Hook = NoHook>
  [[gnu::always_inline]] void each_panel(const Unit& u, Body&& body, Hook&& hook = {}) {
    constexpr bool kMayBeHalf = std::is_same_v<std::remove_cvref_t<Hook>, NoHook>;
    const int whole = u.panel_end - (kMayBeHalf && u.half() ? 1 : 0);
    int tile = 0;
    for (int panel = u.panel_begin; panel < whole; ++panel) each_row<4, Steps>(u, panel, tile, body, hook);
    if constexpr (kMayBeHalf)
      if (u.half()) half_panel(u, whole, body);
  }

  template <class Body>
  [[gnu::noinline]] void half_panel(const Unit& u, int panel, Body& body) {
    int tile = 0;
    each_row<2, 0>(u, panel, tile, body);
  }

  // The first N vectors of keys of a panel.
  template <int N, int Steps, class Body, class Hook = NoHook>
  [[gnu::always_inline]] void each_row(const Unit& u, int panel, int& tile, Body&& body, Hook&& hook = {}) {
    constexpr bool kStarted = Steps > 0 && S::kQk == Element::i8;
    const auto steps = known_or<Steps>(steps_);
    const int64_t stride = Steps > 0 ? query_stride(Steps) : s_.q_stride;
    const int64_t at = u.block * kBlockKeys + panel * kPanelKeys;
    const uint32_t* keys = panel_keys(u, panel);
    constexpr bool kAllRows = Qk::template kByVectors<4>;
    for (int row = 0; row < u.rows; row += kAllRows ? u.rows : Qk::kRows, ++tile) {
      const int first = u.first_row + row;
      const auto emit = [&](int r, Acc(&acc)[N]) __attribute__((always_inline)) {
        F32 x[N];
        scale<kStarted, N>(first + r, at, acc, x);
        unroll<N / 2>([&](auto pair) __attribute__((always_inline)) {
          body(row + r, panel * kPanelKeys + pair * 32, x[2 * pair], x[2 * pair + 1]);
        });
      };
      const uint32_t* q = s_.q + first * stride;
      if constexpr (kAllRows) {
        Qk::template run_by_vectors<N, 4>(q, stride, keys, steps, u.rows, s_.raw, emit);
      } else if constexpr (std::is_same_v<std::remove_cvref_t<Hook>, NoHook>) {
        Qk::template run<N, 4>(q, stride, keys, steps, emit);
      } else {
        Qk::template run<N, 4>(
            q, stride, keys, steps, emit, [&](auto turn) __attribute__((always_inline)) { hook(tile, turn); },
            [&](int r)
                __attribute__((always_inline)) { return kStarted ? V::set_i32(s_.q_init[first + r]) : V::set_i32(0); });
      }
    }
  }

  template <bool Started, int N>
  [[gnu::always_inline]] void scale(int row, int64_t at, Acc (&acc)[N], F32 (&x)[N]) const {
    unroll<N>([&](auto v) __attribute__((always_inline)) {
      F32 sum;
      if constexpr (!Started && S::kQk == Element::i8 && !kSignedKeys<V, S>) {
        sum = V::to_f32(V::add_i32(acc[v], V::set_i32(s_.q_init[row])));
      } else {
        sum = to_f32(acc[v]);
      }
      x[v] = scale(factors(), row, at + v * 16, sum);
    });
  }

  // What turns products into scores. A copy of the pointers: stores of scores may alias where they are kept.
  struct Factors {
    const float *q_scale, *q_sum, *steps, *zeros;
    const float* const* bias;
  };
  [[gnu::always_inline]] Factors factors() const {
    return {s_.q_scale, s_.q_sum, a_.head->key_scales, a_.head->key_zeros, s_.key_bias};
  }
  // Scores of one row of the item and 16 keys from `at` of the head's.
  [[gnu::always_inline]] static F32 scale(const Factors& f, int row, int64_t at, F32 sum) {
    const F32 q_scale = V::set(f.q_scale[row]), bias = V::load(f.bias[row] + at);
    if constexpr (!S::kIntegerQk) {
      return V::mul_add(sum, q_scale, bias);
    } else {
      F32 y;
      if constexpr (S::kQk == Element::i4) {
        y = V::mul_add(sum, V::load(f.steps + at), V::mul(V::load(f.zeros + at), V::set(f.q_sum[row])));
      } else {
        y = V::mul(sum, V::load(f.steps + at));
      }
      return V::mul_add(y, q_scale, bias);
    }
  }

  [[gnu::always_inline]] static F32 to_f32(Acc sum) {
    if constexpr (S::kIntegerQk) {
      return V::to_f32(sum);
    } else {
      return sum;
    }
  }

  const AttendArgs& a_;
  const ItemState& s_;
  const int steps_;
};

}  // namespace clary
