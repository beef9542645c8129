// What an attention kernel is told. Everything packed was written by the quantiser (quantise/params.h).
//
// Scores are in octaves from here on (log2, not ln): factors of log2(e) are folded into scales on the way in, and LSE
// is brought back to natural units on the way out.
#pragma once

#include "cuda/layout/tiles.h"

namespace clary::cuda {

enum class Type : uint8_t { f32, f16, bf16, boolean };

struct MaskParams {
  const void* data;  // nullptr: none
  Type type;         // boolean hides where it is 0, the others are added to the scores
  int64_t batch, head, query, key;
  // One TileClass per tile, [batch][head][query tile][key tile]; strides are 0 where the mask broadcasts.
  const uint8_t* classes;
  int64_t class_batch, class_head, class_query;
};

struct OutputParams {
  void* data;
  Type type;
  bool pairs;  // neighbours along the head dim may be stored as one access
  int64_t batch, head, row;
  float* lse;  // nullptr: none
  int64_t lse_batch, lse_head, lse_row;
};

struct AttentionParams {
  Geometry shape;
  Visibility sees;
  // Images of tiles (layout/image.h): Q and K [head][tile], V^T [head][tile].
  const uint8_t *q, *k, *v;
  const float* q_scale;     // [head q][tile][row]: octaves per unit of the integer product; integer kernels
  const float* q_shift;     // [head q][tile][row]: octaves that smoothing K took from every score of the row
  const float* k_scale;     // [head kv][tile][4]
  const float* k_bias;      // [head q][tile][key]: octaves that smoothing Q took from the key; INT4 kernels
  const uint8_t* bad_tile;  // [head kv][tile]: holds a key that is not finite, in K or V
  const uint8_t* bad_key;   // [head kv][tile][key]
  const float* v_scale;     // [sequence][head kv][dim]
  const float* v_centre;    // [sequence][head kv][dim]: what was subtracted from V
  float score_scale;        // octaves per unit of the product; 16-bit kernels
  float softcap;            // octaves; 0: none
  const float* slopes;      // ALiBi, nullptr: none
  int64_t slope_batch, slope_head;
  const float* sinks;  // nullptr: none
  int64_t sink_head;
  MaskParams mask;
  OutputParams out;
};

inline constexpr float kLog2E = 1.44269504088896f, kLn2 = 0.693147180559945f;

// Scores of a tile that change by more than a factor per row leave the fast path.
CLARY_ANYWHERE bool changes_scores(const AttentionParams& p) {
  return p.softcap > 0 || p.slopes != nullptr || (p.mask.data != nullptr && p.mask.type != Type::boolean);
}

// P is scaled by 2^offset before it is rounded: e4m3 is used up to its largest number, 448; the smallest normal f16 is
// then 2^-22 of the row's maximum; bf16 has the range of f32.
CLARY_ANYWHERE float p_offset(Element p) {
  return p == Element::e4m3 ? 8.8073549220576f : p == Element::f16 ? 8.0f : 0.0f;
}

}  // namespace clary::cuda
