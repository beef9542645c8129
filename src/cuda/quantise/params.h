// What the quantiser is told: inputs with any strides, and the packed arrays that it writes (attention/params.h).
//
// Two launches, three where a mask has to be surveyed:
//
//     statistics   sums over K (and Q, for INT4), sums and extremes of V, per channel and chunk of tokens
//     pack         Q | K and V^T: subtract, scale, round, write images
//     classes      one TileClass per tile of the mask
#pragma once

#include "cuda/attention/params.h"
#include "cuda/layout/tiles.h"

namespace clary::cuda {

struct InputParams {
  const void* data;
  int64_t batch, head, row;  // strides in elements
  bool vectors;              // 16-byte loads are allowed: aligned data and strides
};

// Tokens are summed in this many chunks per head, so that a single head fills a GPU. The chunks are added in order: the
// same bits in every run.
inline constexpr int kChunks = 16;
inline constexpr int kQuantiseThreads = 256;

struct QuantiseParams {
  Geometry shape;
  InputParams q, k, v;
  Type type;
  Element qk, pv;            // of the images
  float q_levels, k_levels;  // 127 or 7; unused for 16-bit images
  bool smooth_q;             // subtract the mean of Q too, and give k_bias what that takes from the scores
  float softmax_scale;       // natural units
  uint8_t *q_image, *k_image, *v_image;
  float *q_scale, *q_shift, *k_scale, *k_bias;
  uint8_t *bad_tile, *bad_key;
  float *v_scale, *v_centre;
  // Partial results, [sequence][head][chunk][dim].
  float *k_sum, *v_sum, *v_least, *v_largest, *q_sum;
};

CLARY_ANYWHERE bool smooths(const QuantiseParams& p) { return is_integer(p.qk); }
// The largest number that a rounded value may have; 0: values are rounded as they are.
CLARY_ANYWHERE float v_top(const QuantiseParams& p) {
  // e4m3 ends at 448. f16 has the same 11 bits everywhere: 1024 leaves 24 binary orders of normal numbers below.
  return !smooths(p) ? 0.0f : p.pv == Element::e4m3 ? 448.0f : 1024.0f;
}

// Shared memory of the pack kernel: three vectors of channels, four group maxima, a flag per key, one image of V^T.
inline constexpr int kMostTileKeys = 128;
struct PackShared {
  uint32_t k_mean, v_centre, v_factor, groups, bad, image, bytes;
  CLARY_ANYWHERE PackShared(uint32_t base, const QuantiseParams& p)
      : k_mean(base),
        v_centre(k_mean + 4 * static_cast<uint32_t>(p.shape.dim)),
        v_factor(v_centre + 4 * static_cast<uint32_t>(p.shape.dim)),
        groups(v_factor + 4 * static_cast<uint32_t>(p.shape.dim)),
        bad(groups + 16),
        image(bad + 4 * kMostTileKeys),
        bytes(image + static_cast<uint32_t>(p.shape.dim * p.shape.tile_keys * bits_of(p.pv) / 8) - base) {}
};
// Shared memory of the statistics kernel: one float per thread and channel, three quantities.
inline constexpr int kStatisticsSharedBytes = 3 * kQuantiseThreads * 8 * 4;

// Of the survey of a mask.
struct ClassParams {
  MaskParams mask;
  uint8_t* classes;
  int32_t len_q, len_k, tile_rows, tile_keys;
  int32_t heads;  // of the mask
};
inline constexpr int kClassThreads = 128;

}  // namespace clary::cuda
