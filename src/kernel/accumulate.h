// O = alpha * O + P V of one unit and block. Products of a block are summed apart before they meet O: in exact integers
// for INT8, and in f32 over 256 keys otherwise, which keeps the error of long sums small.
#pragma once

#include "kernel/product.h"
#include "kernel/scores.h"

namespace clary {

template <class V, class S>
class Accumulate {
 public:
  using F32 = typename V::F32;
  using Pv = Product<V, S::kPv, Unsigned::broadcast>;

  Accumulate(const AttendArgs& args, const ItemState& state) : a_(args), s_(state) {}

  // Whole: all panels of the block are visible. `hook`: see Product::run; called with the number of the register tile
  // and its turn.
  template <bool Whole = false, class Hook = NoHook>
  [[gnu::always_inline]] void run(const Unit& u, Hook&& hook = {}) {
    if constexpr (kUnsignedValues)
      for (int r = 0; r < u.rows; ++r) surplus_[r] = 128 * sum_bytes(u, r);
    const int width = a_.sizes->value_width;
    int channel = 0, tile = 0;
    for (; channel + kGroupChannels <= width; channel += kGroupChannels) group<4, Whole>(u, channel, tile, hook);
    switch ((width - channel) / 16) {
      case 3: return group<3, Whole>(u, channel, tile, hook);
      case 2: return group<2, Whole>(u, channel, tile, hook);
      case 1: return group<1, Whole>(u, channel, tile, hook);
      default: return;
    }
  }

 private:
  static constexpr int kPerStep = elements_per_step(S::kPv);
  // Sum of P (V + 128) = sum of P V + 128 times the sum of the row's P.
  static constexpr bool kUnsignedValues = V::kUnsignedValues && S::kPv == Element::i8;

  int32_t sum_bytes(const Unit& u, int r) const {
    auto sum = V::set_i32(0);
    for (int i = u.panel_begin * kPanelKeys; i < u.panel_end * kPanelKeys; i += kPanelKeys)
      sum = V::dot4_uu(sum, V::load_i32(s_.p + r * kBlockKeys + i), V::set_i32(0x01010101));
    return V::reduce_add_i32(sum);
  }

  template <int N, bool Whole, class Hook>
  [[gnu::always_inline]] void group(const Unit& u, int channel, int& tile, Hook&& hook) {
    const int64_t block_bytes = a_.sizes->value_block_bytes;
    const int first_step = Whole ? 0 : u.panel_begin * (kPanelKeys / kPerStep);
    constexpr int kKnownSteps = Whole ? kBlockKeys / kPerStep : 0;
    // P of keys that nobody sees is 0. Fours: kLanes and kInPairs.
    const auto steps =
        known_or<kKnownSteps>(static_cast<int>(round_up((u.seen_keys - u.first_key() + kPerStep - 1) / kPerStep, 4)));
    const auto* v = reinterpret_cast<const uint32_t*>(a_.head->values + u.block * block_bytes) +
                    int64_t{channel} * (kBlockKeys / kPerStep) + int64_t{first_step} * N * 16;
    constexpr int64_t kStride = kBlockKeys / kPerStep;
    const auto* p =
        (S::kPv == Element::f32 ? reinterpret_cast<const uint32_t*>(s_.s) : reinterpret_cast<const uint32_t*>(s_.p)) +
        first_step * (kInPairs<V, S::kPv> ? 2 : 1);
    if constexpr (V::kQuarters) return group_in_quarters<N>(u, channel, p, v, steps);
    constexpr bool kAllRows = Pv::template kByVectors<N>;
    for (int row = 0; row < u.rows; row += kAllRows ? u.rows : Pv::kRows, ++tile) {
      const auto emit = [&](int r, typename Pv::Acc(&acc)[N]) __attribute__((always_inline)) {
        add<N>(u, row + r, channel, acc);
      };
      if constexpr (kAllRows) {
        Pv::template run_by_vectors<N, N>(p, kStride, v, steps, u.rows, s_.raw, emit);
      } else if constexpr (std::is_same_v<std::remove_cvref_t<Hook>, NoHook>) {
        Pv::template run<N, N>(p + row * kStride, kStride, v, steps, emit);
      } else {
        Pv::template run<N, N>(
            p + row * kStride, kStride, v, steps,
            emit, [&](auto turn) __attribute__((always_inline)) { hook(tile, turn); });
      }
    }
  }

  // With copies of the pointers: stores of O may alias where they are kept.
  template <int N>
  [[gnu::always_inline]] void group_in_quarters(const Unit& u, int channel, const uint32_t* p, const uint32_t* v,
                                                int steps) const {
    const int width = a_.sizes->value_width;
    float* const o = s_.o + int64_t{u.first_row} * width + channel;
    const float *const alpha = s_.alpha, *const beta = s_.beta, *const scales = value_scales(u, channel);
    const auto start = [&](int row) __attribute__((always_inline)) {
      return V::set_i32(kUnsignedValues ? -surplus_[row] : 0);
    };
    Pv::template run_in_quarters<N, N>(
        p, kBlockKeys / kPerStep, v, steps, u.rows,
        start, [&](int row, int n, typename Pv::Acc acc) __attribute__((always_inline)) {
          add(o + row * width + n * 16, V::set(alpha[row]), beta[row], S::kFixedPoint ? scales + n * 16 : nullptr, acc);
        });
  }

  template <int N>
  [[gnu::always_inline]] void add(const Unit& u, int row, int channel, typename Pv::Acc (&acc)[N]) const {
    float* o = s_.o + int64_t{u.first_row + row} * a_.sizes->value_width + channel;
    const F32 alpha = V::set(s_.alpha[row]);
    unroll<N>([&](auto n) __attribute__((always_inline)) {
      add(o + n * 16, alpha, s_.beta[row], value_scales(u, channel + n * 16), acc[n]);
    });
  }

  [[gnu::always_inline]] static void add(float* o, F32 alpha, float beta, const float* scales, typename Pv::Acc acc) {
    const F32 old = V::load(o);
    if constexpr (S::kFixedPoint) {
      const F32 weight = V::mul(V::set(beta), V::load(scales));
      V::store(o, V::mul_add(V::to_f32(acc), weight, V::mul(old, alpha)));
    } else {
      V::store(o, V::mul_add(old, alpha, acc));
    }
  }

  // Where values have scales.
  [[gnu::always_inline]] const float* value_scales(const Unit& u, int channel) const {
    if constexpr (!S::kFixedPoint) return nullptr;
    return a_.head->value_scales + u.block * a_.sizes->value_width + channel;
  }

  const AttendArgs& a_;
  const ItemState& s_;
  int32_t surplus_[kUnitRows];  // of each row; only where values are unsigned
};

}  // namespace clary
