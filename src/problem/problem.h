// The canonical problem: what a call asks for, checked, with every alignment rule resolved to one offset.
// Semantics: docs/semantics.md.
#pragma once

#include <cstddef>
#include <cstdint>

#include "clary/clary.h"
#include "core/dtype.h"

namespace clary {

// Numbered as clary_precision is, whose 5 is a rule and no precision.
enum class Precision : uint8_t { exact, bf16, int8_f16, int8, int4, bf16x3 = 6 };
inline constexpr int kPrecisions = 7;
const char* name(Precision precision);

// Distances in elements between neighbours along each dimension; the head dimension is dense.
struct Strides {
  int64_t batch = 0, head = 0, row = 0;
};

struct Mask {
  enum class Kind : uint8_t { none, boolean, additive };
  Kind kind = Kind::none;
  DType dtype = DType::boolean;
  const void* data = nullptr;
  // Elements; 0 along broadcast dimensions. `key` is 0 or 1.
  int64_t batch = 0, head = 0, query = 0, key = 0;
};

// One batch entry or one varlen sequence: where its rows begin in the tensors and how many there are.
struct Sequence {
  int64_t batch = 0;  // index along the tensors' batch dimension
  int64_t q_begin = 0, k_begin = 0, len_q = 0, len_k = 0;
};

struct KeyRange {
  int64_t begin = 0, end = 0;
};

// Where the tensors are and, for CUDA (DLPack: 2), what the call was given to work with.
struct Device {
  int type = 1, id = 0;
  void* stream = nullptr;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  bool is_cuda() const { return type == 2; }
};

struct Problem {
  int64_t sequences = 0, heads_q = 0, heads_kv = 0, group = 0;  // group = heads_q / heads_kv
  int64_t len_q = 0, len_k = 0;                                 // of the tensors
  int64_t max_len_q = 0, max_len_k = 0;                         // of a sequence
  int64_t dim_qk = 0, dim_v = 0;
  DType dtype = DType::f32, out_dtype = DType::f32;
  Strides q, k, v, out, lse;
  bool has_lse = false;

  float softmax_scale = 1, softcap = 0;  // softcap 0 = none
  clary_causal causal = CLARY_NOT_CAUSAL;
  int64_t causal_offset = 0;
  int64_t window_left = -1, window_right = -1;
  Mask mask;
  const float* alibi_slopes = nullptr;  // [batch * alibi_batch + head * alibi_head]
  int64_t alibi_batch = 0, alibi_head = 0;
  const float* sinks = nullptr;  // [head * sinks_head]
  int64_t sinks_head = 0;
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* cu_seqlens_k = nullptr;

  clary_precision precision = CLARY_AUTO;
  double guard = 0;  // 0 = none
  int guard_rows = 16;
  Device device;

  Sequence sequence(int64_t s) const;
  // Query i of a sequence is aligned with key i + offset.
  int64_t offset(const Sequence& s) const;
  // Keys that causality, window and length leave visible to query i (the mask may hide more).
  KeyRange visible_keys(const Sequence& s, int64_t i) const;
  // Does it depend on the query at all?
  bool limits_keys() const { return causal != CLARY_NOT_CAUSAL || window_left >= 0 || window_right >= 0; }
  // Does the mask show key j of sequence `s` to row (head, i)?
  bool mask_shows(int64_t s, int64_t head, int64_t i, int64_t j) const;
  // A boolean mask that is the same for every query becomes part of the key bias.
  bool folds_mask() const { return mask.kind == Mask::Kind::boolean && mask.query == 0; }
  // Is the mask the same for every query, so that it may hide a key altogether?
  bool hides_keys() const { return mask.kind != Mask::Kind::none && mask.query == 0; }
  // hidden[i]: does such a mask hide key first + i * step of sequence `s` from all heads that read `head_kv`?
  void find_hidden_keys(int64_t s, int64_t head_kv, int64_t first, int64_t step, int count, bool* hidden) const;
  // The additive mask's value there; 0 when there is none.
  double mask_value(int64_t s, int64_t head, int64_t i, int64_t j) const;
  double alibi_slope(int64_t s, int64_t head) const;
  bool changes_scores() const { return softcap > 0 || alibi_slopes != nullptr; }
};

// The tensors of one call, whose shapes a Problem describes.
struct Tensors {
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  void* out = nullptr;
  float* lse = nullptr;
};

// Checks every argument. On success `tensors` holds the data pointers (with byte offsets applied). data_later: those of
// q, k, v, out and lse are not read, and may be NULL.
clary_status make_problem(const clary_tensor* q, const clary_tensor* k, const clary_tensor* v, const clary_tensor* out,
                          const clary_tensor* lse, const clary_attention_params* params, bool data_later,
                          Problem& problem, Tensors& tensors);

// The element at `index`, as double, of an array of `dtype`.
double element(const void* data, DType dtype, int64_t index);

}  // namespace clary
