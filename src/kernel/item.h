// The state of one work item: up to 128 query rows of one key-value head, with their running softmax.
//
// Memory at head dim 128, INT8: Q 16 KB, O 64 KB, l 8 KB, and per unit of 16 rows S 8 KB + P 4 KB (f32 scores 16 KB
// only where masks are applied): the unit lives in L1, the item and a block of K and V in L2.
#pragma once

#include "core/arena.h"
#include "kernel/scheme.h"

namespace clary {

struct ItemState {
  int rows = 0;  // padded to whole units; the padding rows are zero queries whose results nobody reads
  // Queries, [rows][key_steps] of 4 bytes.
  uint32_t* q = nullptr;
  int64_t q_stride = 0;
  float* q_scale = nullptr;   // product -> units of 1/kUnitsPerOctave octave
  int32_t* q_init = nullptr;  // -128 * sum of codes: undoes the +128 on K
  float* q_sum = nullptr;     // sum of codes, for the zero points of INT4
  float* constant = nullptr;  // scale * q . key_mean in units: what smoothing K took from every score of the row
  float* reach = nullptr;     // (|q - mean| + |mean|) in units per unit of key norm: bounds the scores
  const float** key_bias = nullptr;
  KeyRange* range = nullptr;  // keys visible by causality, window and length
  float* slope = nullptr;     // ALiBi, in units
  // Running softmax. m in octaves for f32 softmax, in 1/64 octave (int32) for fixed point.
  float* o = nullptr;  // [rows][value_width]
  float* l = nullptr;  // [rows][16], summed over lanes at the end
  float* m = nullptr;
  uint8_t* exact = nullptr;  // rows that exact_row() has to compute
  // One unit.
  int16_t* s16 = nullptr;  // [2][16][256], fixed point
  float* s = nullptr;      // [16][256]
  uint8_t* p = nullptr;    // [16][256] of u8, u8 in words, or bf16; of tiles see kernel/tiles/layout.h
  int32_t* raw = nullptr;  // [16][64] products on their way to the epilogue
  float* alpha = nullptr;  // [16] rescale O, and (fixed point) beta: scale of this block
  float* beta = nullptr;
  int32_t* top = nullptr;  // [2][16] block maxima, fixed point
  // Boolean masks: Rules::MaskState of [unit][block of the item], and per block the smallest and the or-ed bytes.
  uint8_t* mask_states = nullptr;
  uint32_t* mask_bytes = nullptr;
  uint32_t* unpacked = nullptr;  // one block of INT4 keys as bytes
  float* spare = nullptr;        // one unit of O
};

// O from a row on. On the matrix engine O^T of the unit that begins there, [32 channels][channel tile][query tile]
// [16 channels][16 queries].
[[gnu::always_inline]] inline float* rows_of_o(const AttendArgs& args, const ItemState& state, int row) {
  return state.o + int64_t{row} * args.sizes->value_width;
}

// Direct reads whole 32 channels.
constexpr int64_t query_stride(int key_steps) { return round_up(key_steps, 32); }

[[gnu::always_inline]] inline int64_t mask_blocks(const Problem& p) {
  return p.mask.kind == Mask::Kind::boolean ? (p.max_len_k + kBlockKeys - 1) / kBlockKeys : 0;
}

// Lays the state out in `arena`; the same code measures it. mask_blocks: blocks of keys that a boolean mask is surveyed
// for.
[[gnu::always_inline]] inline ItemState lay_out_item(Arena& arena, const PackedSizes& sizes, int64_t mask_blocks) {
  ItemState s;
  const int64_t rows = sizes.tiles ? kTileItemRows : kItemRows;
  s.q_stride = query_stride(sizes.key_steps);
  s.q = arena.take<uint32_t>(rows * s.q_stride);
  s.q_scale = arena.take<float>(rows);
  s.q_init = arena.take<int32_t>(rows);
  s.q_sum = arena.take<float>(rows);
  s.constant = arena.take<float>(rows);
  s.reach = arena.take<float>(rows);
  s.key_bias = arena.take<const float*>(rows);
  s.range = arena.take<KeyRange>(rows);
  s.slope = arena.take<float>(rows);
  s.o = arena.take<float>(rows * sizes.value_width);
  s.l = arena.take<float>(rows * 16);
  s.m = arena.take<float>(rows);
  s.exact = arena.take<uint8_t>(rows);
  s.s16 = arena.take<int16_t>(2 * kUnitRows * kBlockKeys);
  s.s = arena.take<float>(kUnitRows * kBlockKeys);
  s.p = arena.take<uint8_t>(kUnitRows * kBlockKeys * (sizes.tiles ? 6 : 2));
  s.raw = arena.take<int32_t>(kUnitRows * kPanelKeys);
  s.alpha = arena.take<float>(kUnitRows);
  s.beta = arena.take<float>(kUnitRows);
  s.top = arena.take<int32_t>(2 * kUnitRows);
  s.mask_states = arena.take<uint8_t>(rows / kUnitRows * mask_blocks);
  s.mask_bytes = arena.take<uint32_t>(mask_blocks * 32);
  if (sizes.key_zeros) s.unpacked = arena.take<uint32_t>(int64_t{kBlockKeys} * sizes.key_steps);
  s.spare = arena.take<float>(int64_t{sizes.tiles ? 2 : 1} * kUnitRows * round_up(sizes.value_width, 32));
  return s;
}

}  // namespace clary
