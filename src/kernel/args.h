// What the kernels are handed: plain data, one set of structs for all instruction sets and precisions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "problem/problem.h"

namespace clary {

// Keys are packed, skipped and multiplied in blocks; P has one scale per block. 256: P of 16 rows (4 KB) and S (8 KB)
// stay in L1 beside a panel of K, the u16 sums of P (8 * 8160) just fit, and a block's O update is 1/64 of its
// products.
inline constexpr int kBlockKeys = 256;
// Keys of one register tile: 4 vectors of 16 lanes.
inline constexpr int kPanelKeys = 64;
inline constexpr int kPanels = kBlockKeys / kPanelKeys;
// Of the last panel that a unit sees, the second half is left out where nobody sees it.
inline constexpr int kHalfKeys = kPanelKeys / 2;
// Rows that go through scores, softmax and products together.
inline constexpr int kUnitRows = 16;
// Rows of a work item at most: K and V of a block (64 KB at head dim 128) are used 8 times from L2. On the matrix
// engine, which takes a fifth of the time for them, K and V come from L3 once for 512 rows: a tenth of the time of the
// products.
inline constexpr int kItemRows = 128, kTileItemRows = 512, kMostItemRows = kTileItemRows;
// Rows per key-value head up to which exact attention reads K and V directly: one unit.
inline constexpr int kDirectRows = kUnitRows;
// Tokens whose mean smooths a head: any vector is exact algebra, so a sample serves; 512 put it within 4 % of a
// standard deviation of the true mean.
inline constexpr int kMeanTokens = 512;

constexpr int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Sizes of packed heads. A "step" is 4 bytes of the summed dimension: 4 INT8, 2 bf16 or 1 f32 (8 INT4 as stored).
struct PackedSizes {
  int key_steps = 0;            // steps of one key or query
  int value_width = 0;          // dim_v in whole vectors
  int64_t key_block_bytes = 0;  // as stored
  int64_t value_block_bytes = 0;
  bool key_scales = false, key_zeros = false, value_scales = false, centred_values = false;
  bool tiles = false;  // laid out for the matrix engine (kernel/tiles/layout.h), and only for it
};

// Which keys of a block have a bias that is not -inf.
struct BlockLive {
  uint8_t panels = 0;  // bit p: some key of panel p
  bool all = true;     // every key that exists
  uint16_t end = 0;    // they all lie before this one
};

// One key-value head of one sequence, packed. All arrays are indexed from the head's first block.
struct PackedHead {
  std::byte* keys = nullptr;      // [blocks][panel][step][4 vectors][16 keys] of 4 bytes
  std::byte* values = nullptr;    // [blocks][64-channel group][key step][<= 4 vectors][16 channels] of 4 bytes
  float* key_scales = nullptr;    // [blocks][256], in the order of the packed keys
  float* key_zeros = nullptr;     // [blocks][256]
  float* value_scales = nullptr;  // [blocks][value_width]
  float* value_mean = nullptr;    // [value_width]
  float* key_mean = nullptr;      // [dim_qk to whole vectors]
  // Added to the scores, per key: what smoothing Q took away, -inf for keys that exist only as padding or that the mask
  // hides from every row. One array per query head of the group, or one for all (stride 0). [..][blocks][256]
  float* key_bias = nullptr;
  int64_t key_bias_stride = 0;
  uint32_t* bias_words = nullptr;   // tiles: the same as 16-bit words, two keys in each. [..][blocks][128]
  BlockLive* block_live = nullptr;  // [..][blocks]
  int64_t block_live_stride = 0;
  const float* query_mean = nullptr;  // per query head of the group; nullptr: queries are not smoothed
  int64_t query_mean_stride = 0;
  float* block_norm = nullptr;         // [blocks]: largest Euclidean norm of a smoothed key
  uint8_t* nonfinite = nullptr;        // [blocks][256]: key or value with NaN or infinity (stored as 0)
  uint8_t* block_nonfinite = nullptr;  // [blocks]
};

// Pack one block of one head.
struct PackArgs {
  const Problem* problem = nullptr;
  const Tensors* tensors = nullptr;
  Sequence sequence;
  int64_t sequence_index = 0, head_kv = 0, block = 0;
  const PackedSizes* sizes = nullptr;
  const PackedHead* head = nullptr;
  void* scratch = nullptr;  // pack_scratch_bytes()
};

// Mean of a sample of rows of one head.
struct MeanArgs {
  const void* rows = nullptr;
  DType dtype = DType::f32;
  int64_t row_stride = 0, count = 0;
  int dim = 0;
  float* mean = nullptr;  // dim to whole vectors, padding zero
  // Of keys and values: hidden ones do not count.
  const Problem* problem = nullptr;
  int64_t sequence_index = 0, head_kv = 0;
};

// A query row: where its result goes.
struct Row {
  int64_t head = 0, query = 0;
  void* out = nullptr;
  float* lse = nullptr;  // may be nullptr
};

// Unnormalised result of one row over some of its keys: (o, m, l) with m in octaves. docs/semantics.md, "merging".
struct PartialRow {
  float m, l;
  float constant;  // octaves that all scores of the row lack
  int32_t exact;   // 1: exact_row() has to compute this row
};

struct AttendArgs {
  const Problem* problem = nullptr;
  const Tensors* tensors = nullptr;
  Sequence sequence;
  int64_t sequence_index = 0, head_kv = 0;
  const PackedSizes* sizes = nullptr;
  const PackedHead* head = nullptr;
  const Row* rows = nullptr;
  int count = 0;  // <= KernelTable::item_rows
  int64_t block_begin = 0, block_end = 0;
  DType out_dtype = DType::f32;
  bool mask_folded = false;
  // nullptr: finish the rows. Otherwise [count] and [count][value_width].
  PartialRow* partial = nullptr;
  float* partial_out = nullptr;
  void* scratch = nullptr;  // attend_scratch_bytes()
};

// Parts of the same rows over different keys, merged in the order of the parts. `rows.partial` and `rows.partial_out`
// hold the first part; part i lies i * count rows behind.
struct MergeArgs {
  AttendArgs rows;
  int parts = 0;
};

// One row straight from the definition, in double; also the result where the fast kernels cannot serve: non-finite
// live inputs, logits beyond the range of INT8. Defined in exact_row.cpp.
void exact_row(const Problem& problem, const Tensors& tensors, const Sequence& sequence, int64_t sequence_index,
               const Row& row, DType out_dtype);

// Normalisation of one row. All logits in octaves (log2 units).
struct RowScales {
  float weight;       // factor of the accumulated O
  float mean_weight;  // factor of the mean that centring took from V
  float lse;
};
// m, l: softmax state; constant: what all keys of the row share and the scores lack; sink: pointer or nullptr.
// Without a sink and where nobody asks for the LSE, no logarithm is taken: lse is 0.
RowScales row_scales(float m, float l, float constant, const float* sink, bool with_lse);

// An instruction set's kernels. Arrays are indexed by Precision.
struct KernelTable {
  const char* name;
  int item_rows;  // of a work item at most
  PackedSizes (*sizes)(Precision precision, int dim_qk, int dim_v);
  void (*channel_mean)(const MeanArgs& args);
  void (*pack[kPrecisions])(const PackArgs& args);
  void (*attend[kPrecisions])(const AttendArgs& args);
  // Exact, from K and V as they lie; at most kDirectRows rows. `head` and `mask_folded` are not used.
  void (*attend_directly)(const AttendArgs& args);
  void (*merge)(const MergeArgs& args);
  size_t (*pack_scratch_bytes)(int dim_qk, int dim_v);
  size_t (*attend_scratch_bytes)(const PackedSizes& sizes, const Problem& problem);
  // Runs `rounds` rounds of independent multiply-adds on registers; returns the number of operations done.
  double (*work)(clary_peak what, int64_t rounds);
  float (*sum_memory)(const float* data, int64_t count);  // count: a multiple of 64
};

}  // namespace clary
