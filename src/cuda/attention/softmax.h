// Online softmax of a strip of 16 rows x one tile of keys, in the registers of one warp.
//
// A thread has rows g and g + 8 and, of each, two of every 8 columns. The maximum is shared by the four lanes of a row
// (two shuffles); sums stay per thread until the end. Per score, the fast path costs one conversion, one maximum (half
// an instruction as VIMNMX3), one FFMA, one MUFU.EX2, one FADD and half a conversion to 8 bits: 5 issue slots.
#pragma once

#include "cuda/attention/params.h"
#include "cuda/layout/fragments.h"

namespace clary::cuda {

// Running maximum in octaves and sum of this thread's P, scaled by 2^p_offset, of two rows.
struct RowState {
  float m[2], l[2];
};

CLARY_DEVICE void reset(RowState& row) {
  for (int r = 0; r < 2; ++r) row.m[r] = -__builtin_inff(), row.l[r] = 0;
}

// The new maximum of row `r`, the factor of what was summed so far, and what is added to a score before exp2. A row
// that has seen nothing keeps the maximum minus infinity, and its P are exp2(-inf) = 0: no finite stand-in.
template <class M, Element kP>
CLARY_DEVICE float rescale(RowState& row, int r, float largest, float (&alpha)[2]) {
  largest = M::maximum(largest, M::shuffle_xor(largest, 1));
  largest = M::maximum(largest, M::shuffle_xor(largest, 2));
  const float before = row.m[r], m = M::maximum(before, largest);
  const float base = m == -__builtin_inff() ? 0 : m;
  alpha[r] = M::exp2(before - base);
  row.m[r] = m;
  return p_offset(kP) - base;
}

// kSums: keep the sums of rows, which some kernels get from the tensor core instead.
template <class M, Element kP, int kTiles, bool kSums = true>
struct Softmax {
  static constexpr int kSteps = kTiles * 8 * bits_of(kP) / (8 * 32);  // k-steps of 32 bytes
  static constexpr int kPerRegister = 32 / bits_of(kP);

  // Raw scores -> P, every key visible. A factor >= 0 per row; integer maxima are taken before the conversion.
  template <class Score>
  static CLARY_DEVICE void full(Score (&s)[kTiles][4], const float (&scale)[2], RowState& row, float (&alpha)[2],
                                float (&x)[kTiles][4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float largest = M::to_float(maximum_of_row(s, r)) * scale[r];
      const float shift = rescale<M, kP>(row, r, largest, alpha);
      float sum[2] = {0, 0};
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float probability = M::exp2(M::fma(M::to_float(s[n][2 * r + e]), scale[r], shift));
          sum[e] += probability;
          x[n][2 * r + e] = probability;
        }
      if (kSums) row.l[r] = M::fma(row.l[r], alpha[r], sum[0] + sum[1]);
    }
  }

  // Scores in octaves, minus infinity where hidden -> P, in place.
  static CLARY_DEVICE void partial(float (&x)[kTiles][4], RowState& row, float (&alpha)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float shift = rescale<M, kP>(row, r, maximum_of_row(x, r), alpha);
      float sum[2] = {0, 0};
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float probability = M::exp2(x[n][2 * r + e] + shift);
          sum[e] += probability;
          x[n][2 * r + e] = probability;
        }
      if (kSums) row.l[r] = M::fma(row.l[r], alpha[r], sum[0] + sum[1]);
    }
  }

  // P as A operands: renaming of registers and rounding (layout/fragments.h).
  static CLARY_DEVICE void pack(const float (&x)[kTiles][4], uint32_t (&p)[kSteps][4]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float v[kPerRegister];
#pragma unroll
        for (int e = 0; e < kPerRegister; ++e) {
          const AccumulatorPlace at = place_of_p(kP, step, r, e);
          v[e] = x[at.tile][at.i];
        }
        if constexpr (kP == Element::e4m3)
          p[step][r] = M::e4m3x4(v[0], v[1], v[2], v[3]);
        else if constexpr (kP == Element::f16)
          p[step][r] = M::f16x2(v[0], v[1]);
        else
          p[step][r] = M::bf16x2(v[0], v[1]);
      }
  }

  // Raw integers, three at a time: VIMNMX3 where there is one (sm_90), two instructions elsewhere.
  static CLARY_DEVICE int maximum_of_row(const int (&s)[kTiles][4], int r) {
    int largest = s[0][2 * r];
    largest = M::maximum(largest, s[0][2 * r + 1], largest);
#pragma unroll
    for (int n = 1; n < kTiles; ++n) largest = M::maximum(largest, s[n][2 * r], s[n][2 * r + 1]);
    return largest;
  }
  static CLARY_DEVICE float maximum_of_row(const float (&s)[kTiles][4], int r) {
    float largest = M::maximum(s[0][2 * r], s[0][2 * r + 1]);
#pragma unroll
    for (int n = 1; n < kTiles; ++n) largest = M::maximum(largest, M::maximum(s[n][2 * r], s[n][2 * r + 1]));
    return largest;
  }
};

// What the sums of a row come to. The weight is the share of the keys in the denominator: 1 without a sink, 0 for a
// row that saw nothing; the centre of V counts with it.
//
// Gives: factors of the output and of the centre of V, and the LSE in natural units.
struct RowResult {
  float factor, weight, lse;
};
template <class M>
CLARY_DEVICE RowResult finish_row(float m, float l, float offset, bool has_sink, float sink, float shift) {
  float scale = 1, total = l;
  if (has_sink) {  // one more key without a value
    const float top = M::maximum(m, sink);
    const float base = top == -__builtin_inff() ? 0 : top;
    scale = M::exp2(m - base);
    total = l * scale + M::exp2(sink - base + offset);
    m = top;
  }
  if (total == 0) return {0, 0, -__builtin_inff()};
  return {scale / total, l * scale / total, kLn2 * (m + M::log2(total) - offset + shift)};
}

}  // namespace clary::cuda
