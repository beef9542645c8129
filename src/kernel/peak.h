// The yardsticks: how fast the instruction that a product lives on runs when nothing else is in its way, and how fast
// memory is read by a plain sum.
#pragma once

#include "kernel/scheme.h"

namespace clary {

// Independent chains of one instruction: as many accumulators as a register tile has, and one operand that is new in
// each round, as the packed one of a product. Returns operations done.
template <class V, class Acc, class I32, class Step>
[[gnu::always_inline]] inline double peak_chains(int64_t rounds, double ops_per_step, Acc first, I32 operand,
                                                 Step&& step) {
  constexpr int kChains = V::kTileRows * V::kTileVectors;
  Acc acc[kChains];
  unroll<kChains>([&](auto i) __attribute__((always_inline)) { acc[i] = first; });
  for (int64_t r = 0; r < rounds; ++r) {
    V::keep(operand);
    unroll<kChains>([&](auto i) __attribute__((always_inline)) {
      acc[i] = step(acc[i], operand);
      V::keep(acc[i]);
    });
  }
  return static_cast<double>(rounds) * kChains * ops_per_step;
}

template <class V>
double peak_tiles(clary_peak what, int64_t rounds) {
  V::tile_config();
  unroll<8>([](auto t) { V::template tile_zero<t>(); });
  for (int64_t r = 0; r < rounds; ++r) {
    unroll<4>([&](auto t) {
      if (what == CLARY_PEAK_INT8) {
        V::template tile_dot4_ss<4 + t, 0, 1>();
      } else {
        V::template tile_dot2<4 + t, 0, 1>();
      }
    });
  }
  V::tile_release();
  return static_cast<double>(rounds) * 4 * 16 * 16 * (what == CLARY_PEAK_INT8 ? 128 : 64);
}

template <class V>
double peak_work(clary_peak what, int64_t rounds) {
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  if constexpr (V::kHasTiles)
    if (what != CLARY_PEAK_F32) return peak_tiles<V>(what, rounds);
  if (what == CLARY_PEAK_BF16 && !V::kHasDot2) what = CLARY_PEAK_F32;
  const I32 ones = V::set_i32(0x01010101);
  const F32 one = V::set(1), tiny = V::set(1e-8f);
  const auto fma = [&](F32 acc, I32 x) __attribute__((always_inline)) { return V::mul_add(acc, one, V::as_f32(x)); };
  if constexpr (V::kPairs) {
    const auto rows = typename V::Quad{};
    const auto dot8 = [&](I32 acc, I32 x) __attribute__((always_inline)) { return V::dot8_ss(acc, rows, x); };
    const auto dot4_bf16 = [&](F32 acc, I32 x) __attribute__((always_inline)) { return V::dot4_bf16(acc, rows, x); };
    if (what == CLARY_PEAK_INT8) return peak_chains<V>(rounds, 256, ones, ones, dot8);
    if (what == CLARY_PEAK_BF16) return peak_chains<V>(rounds, 128, one, ones, dot4_bf16);
  } else if constexpr (V::kHasDot2) {
    const auto dot2 = [&](F32 acc, I32 x) __attribute__((always_inline)) { return V::dot2(acc, x, ones); };
    if (what == CLARY_PEAK_BF16) return peak_chains<V>(rounds, 64, one, ones, dot2);
  }
  if (what == CLARY_PEAK_INT8) {
    constexpr double kOps = V::kBytesAsWords ? 64 : 128;
    return peak_chains<V>(
        rounds, kOps, ones, ones, [&](I32 acc, I32 x) __attribute__((always_inline)) {
          if constexpr (V::kBytesAsWords) {
            return V::dot2_i16(acc, x, ones);
          } else if constexpr (V::kSignedKeys) {
            return V::dot4_ss(acc, x, ones);
          } else {
            return V::dot4(acc, x, ones);
          }
        });
  }
  return peak_chains<V>(rounds, 32, one, V::as_i32(tiny), fma);
}

// Sum of `count` floats, a multiple of 64, in four chains.
template <class V>
float sum_memory(const float* data, int64_t count) {
  auto a = V::zero(), b = a, c = a, d = a;
  for (int64_t i = 0; i < count; i += 64) {
    a = V::add(a, V::load(data + i)), b = V::add(b, V::load(data + i + 16));
    c = V::add(c, V::load(data + i + 32)), d = V::add(d, V::load(data + i + 48));
  }
  return V::reduce_add(V::add(V::add(a, b), V::add(c, d)));
}

}  // namespace clary
