// Scores of partial tiles: softcap, ALiBi, masks and positions, in the order of docs/semantics.md.
//
// Works on the two rows (g and g + 8) of a thread in a strip of 16 rows. One pass over the registers per feature, each
// behind a branch that is the same for the whole block; whatever a row needs is computed here and not kept over the
// main loop, whose registers are full. Full tiles never come here.
#pragma once

#include "cuda/attention/params.h"

namespace clary::cuda {

// Where this thread's part of a tile of scores lies.
struct Place {
  int sequence, head;
  int32_t row;        // in the sequence, of register 0; the other row is 8 further
  int32_t key;        // in the sequence, of column 0 of the tile, plus 2 (lane % 4)
  int64_t key_index;  // the same in arrays [head kv][tile][key]
};

template <class M>
CLARY_DEVICE float mask_element(const void* data, Type type, int64_t at) {
  if (type == Type::f32) return static_cast<const float*>(data)[at];
  const uint16_t half = static_cast<const uint16_t*>(data)[at];
  return type == Type::f16 ? M::from_f16(half) : M::from_bf16(half);
}

// c tanh(x / c), by exp2; exact at the ends.
template <class M>
CLARY_DEVICE float soft_capped(float x, float cap) {
  const float e = M::exp2(2 * kLog2E * x / cap);
  return cap - M::divide(2 * cap, e + 1);
}

template <class M, int kTiles>
struct PartialScores {
  using Scores = float[kTiles][4];
  static constexpr float kHidden = -__builtin_inff();

  static CLARY_DEVICE int32_t key_of(const Place& at, int tile, int i) { return at.key + 8 * tile + (i & 1); }

  static CLARY_DEVICE void apply(const AttentionParams& p, const Span& span, const Place& at, const float (&shift)[2],
                                 Scores& x) {
    if (p.softcap > 0) cap(p, shift, x);
    if (p.slopes != nullptr) add_alibi(p, span, at, x);
    if (p.mask.data != nullptr && p.mask.type != Type::boolean) add_mask(p, span, at, x);
    if (p.bad_key != nullptr) poison(p, at, x);
    hide(p, span, at, x);
  }

 private:
  // Softcap acts on the true score, so what smoothing took comes back first.
  static CLARY_DEVICE void cap(const AttentionParams& p, const float (&shift)[2], Scores& x) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) x[n][i] = soft_capped<M>(x[n][i] + shift[i >> 1], p.softcap);
  }

  static CLARY_DEVICE void add_alibi(const AttentionParams& p, const Span& span, const Place& at, Scores& x) {
    const float slope = p.slopes[at.sequence * p.slope_batch + at.head * p.slope_head] * kLog2E;
    // Whole numbers up to 2^24 are exact; beyond, a distance is rounded as any f32 is.
    const float distance = static_cast<float>(at.row + p.sees.aligned(span) - at.key);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float d = distance + static_cast<float>(8 * (i >> 1) - 8 * n - (i & 1));
        x[n][i] -= slope * M::maximum(d, -d);
      }
  }

  static CLARY_DEVICE void add_mask(const AttentionParams& p, const Span& span, const Place& at, Scores& x) {
    const int64_t base = at.sequence * p.mask.batch + at.head * p.mask.head;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t row = at.row + 8 * (i >> 1), key = key_of(at, n, i);
        if (row >= span.len_q || key >= span.len_k) continue;
        const float m = mask_element<M>(p.mask.data, p.mask.type, base + row * p.mask.query + key * p.mask.key);
        // Minus infinity hides the key, whatever its score is.
        x[n][i] = m == kHidden ? kHidden : x[n][i] + kLog2E * m;
      }
  }

  // A key that is not finite makes the rows that see it NaN, and no others.
  static CLARY_DEVICE void poison(const AttentionParams& p, const Place& at, Scores& x) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (p.bad_key[at.key_index + 8 * n + (i & 1)] != 0 && x[n][i] != kHidden) x[n][i] = __builtin_nanf("");
  }

  static CLARY_DEVICE void hide(const AttentionParams& p, const Span& span, const Place& at, Scores& x) {
    const uint8_t* const mask =
        p.mask.data == nullptr || p.mask.type != Type::boolean
            ? nullptr
            : static_cast<const uint8_t*>(p.mask.data) + at.sequence * p.mask.batch + at.head * p.mask.head;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t row = at.row + 8 * r;
      const KeySpan keys = row < span.len_q ? visible_keys(p.sees, span, row) : KeySpan{0, 0};
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = x[n][2 * r + e];
          const int32_t key = key_of(at, n, e);
          bool seen = key >= keys.begin && key < keys.end;
          if (seen && mask != nullptr) seen = mask[row * p.mask.query + key * p.mask.key] != 0;
          score = seen ? score : kHidden;
        }
    }
  }
};

}  // namespace clary::cuda
