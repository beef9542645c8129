// A described attention problem: one line of text, the same for tests, benchmarks and the command.
//
//   b2 hq8 hkv2 lq1024 lk2048 d64 dv80 causal window128,0 softcap30 alibi sinks mask=bool:0.25 bf16 int8 bshd seed7
//
// Tokens in any order; what is not given has the default below. docs/benchmarks.md lists the grammar.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "clary/clary.h"

namespace clary::support {

enum class DType { f32, f16, bf16 };

// How the elements of Q, K and V are drawn (docs/benchmarks.md: "data").
enum class Data {
  normal,    // N(0, 1)
  outliers,  // K with channel offsets up to 10 on 5 % of the channels, two Q channels x4, V with offsets
  peaked,    // logits of sigma 3
  constant   // every channel constant over the tokens
};

enum class MaskKind { none, boolean, additive, key_padding, block };

struct Problem {
  int64_t batch = 1, heads_q = 1, heads_kv = 1, len_q = 1024, len_k = 1024, dim_qk = 64, dim_v = 64;
  clary_layout layout = CLARY_BHSD;
  DType dtype = DType::f32;
  bool out_f32 = false;  // output in f32 although the inputs are not
  clary_precision precision = CLARY_AUTO;
  clary_causal causal = CLARY_NOT_CAUSAL;
  int64_t causal_offset = 0;
  int64_t window_left = -1, window_right = -1;
  double softcap = 0, softmax_scale = 0;  // softmax_scale is read when has_scale
  bool has_scale = false;
  bool alibi = false, sinks = false;
  MaskKind mask = MaskKind::none;
  bool mask_input_type = false;         // additive masks in the inputs' type instead of f32
  double mask_keep = 0.5;               // visible share of entries, blocks of 128 x 256 or keys
  int mask_broadcast = 0;               // bit 0: batch, 1: heads, 2: queries, 3: keys have size 1
  std::vector<int32_t> lens_q, lens_k;  // varlen batch when not empty: batch is their number
  Data data = Data::normal;
  uint64_t seed = 1;
  double guard = 0;  // 0 = none

  bool operator==(const Problem&) const = default;
};

// Lengths of one batch entry (or sequence), the offset that aligns its queries with its keys, and the factor of q.k.
int64_t length_q(const Problem& problem, int64_t batch);
int64_t length_k(const Problem& problem, int64_t batch);
int64_t alignment_offset(const Problem& problem, int64_t batch);
double scale_of(const Problem& problem);
const char* name_of(DType dtype);
const char* name_of(clary_precision precision);

// Throws std::invalid_argument with the offending token and what is allowed.
Problem parse_problem(std::string_view line);
std::string to_string(const Problem& problem);  // parse_problem(to_string(p)) == p

// Memory for one tensor; `view()` points into it and lives as long as it does.
class Tensor {
 public:
  Tensor() = default;
  // Zero-filled. `strides` in elements, empty = dense. dtype: "f32", "f16", "bf16", "bool", "i32".
  Tensor(std::string dtype, std::vector<int64_t> shape, std::vector<int64_t> strides = {});
  const clary_tensor* view() const { return &view_; }
  void* data() { return bytes_.data() + 0; }
  const void* data() const { return bytes_.data(); }
  const std::string& dtype() const { return dtype_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  bool empty() const { return dtype_.empty(); }
  size_t size_bytes() const { return bytes_.size(); }
  // Element access as double, by 4-D index (missing leading dimensions and broadcast ones are ignored).
  double at(int64_t a, int64_t b, int64_t c, int64_t d) const;
  void set(int64_t a, int64_t b, int64_t c, int64_t d, double value);  // rounds to the dtype
  Tensor(const Tensor& other);
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor other) noexcept;

 private:
  void rebind();
  std::string dtype_;
  std::vector<int64_t> shape_, strides_;
  std::vector<std::byte> bytes_;
  clary_tensor view_{};
};

// Everything a call needs, made from a description.
struct Tensors {
  Tensor q, k, v, out, lse, mask, alibi_slopes, sinks;
  std::vector<int32_t> cu_seqlens_q, cu_seqlens_k;  // empty unless varlen
};

Tensors make_tensors(const Problem& problem);
// The parameters that say `problem`; they point into `tensors`.
clary_attention_params make_params(const Problem& problem, const Tensors& tensors);

}  // namespace clary::support
