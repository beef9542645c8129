#include "support/problem.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "support/data.h"

namespace clary::support {
namespace {

constexpr const char* kDTypes[] = {"f32", "f16", "bf16"};
constexpr const char* kPrecisions[] = {"exact", "bf16", "int8_f16", "int8", "int4", "auto", "bf16x3"};
constexpr const char* kCausals[] = {"", "top_left", "bottom_right", ""};
constexpr const char* kData[] = {"normal", "outliers", "peaked", "constant"};
constexpr const char* kMasks[] = {"none", "bool", "additive", "key_padding", "block"};
constexpr const char* kDimensions = "bhqk";  // letter n stands for bit n of mask_broadcast

[[noreturn]] void refuse(std::string_view token, const std::string& allowed) {
  throw std::invalid_argument("problem: token '" + std::string(token) + "': " + allowed);
}

int64_t parse_int(std::string_view token, std::string_view text, int64_t least) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least)
    refuse(token, "expected an integer >= " + std::to_string(least));
  return value;
}

double parse_real(std::string_view token, std::string_view text, double least) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value) || value < least)
    refuse(token, least > -1e300 ? "expected a finite number >= " + std::to_string(least) : "expected a finite number");
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t start = 0;;) {
    const size_t end = text.find(separator, start);
    parts.push_back(text.substr(start, end - start));
    if (end == std::string_view::npos) return parts;
    start = end + 1;
  }
}

template <size_t N>
int find_name(const char* const (&names)[N], std::string_view name) {
  const auto found = std::find(std::begin(names), std::end(names), name);
  return found == std::end(names) ? -1 : static_cast<int>(found - std::begin(names));
}

template <size_t N>
int parse_name(std::string_view token, const char* const (&names)[N], std::string_view name) {
  const int index = find_name(names, name);
  std::string allowed = "expected one of";
  for (const char* n : names) allowed += std::string(" ") + n;
  if (index < 0) refuse(token, allowed);
  return index;
}

bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

void parse_mask(std::string_view token, std::string_view text, Problem& p) {
  const auto parts = split(text, ':');
  if (parts.size() > 3) refuse(token, "expected mask=KIND[:KEEP[:DIMENSIONS]]");
  p.mask = static_cast<MaskKind>(parse_name(token, kMasks, parts[0]));
  p.mask_broadcast = 0;
  if (parts.size() > 1) p.mask_keep = parse_real(token, parts[1], 0);
  if (p.mask_keep > 1) refuse(token, "the share that a mask keeps is at most 1");
  if (parts.size() > 2)
    for (const char c : parts[2]) {
      const char* found = std::strchr(kDimensions, c);
      if (c == 0 || !found) refuse(token, "dimensions to broadcast are letters of bhqk");
      p.mask_broadcast |= 1 << (found - kDimensions);
    }
}

std::vector<int32_t> parse_lengths(std::string_view token, std::string_view text) {
  std::vector<int32_t> lengths;
  for (const auto part : split(text, ',')) {
    const int64_t length = parse_int(token, part, 0);
    if (length > 1 << 24) refuse(token, "sequences have at most 2^24 tokens");
    lengths.push_back(static_cast<int32_t>(length));
  }
  return lengths;
}

void parse_causal(std::string_view token, std::string_view text, Problem& p) {
  const int named = find_name(kCausals, text);
  if (named > 0) {
    p.causal = static_cast<clary_causal>(named);
    return;
  }
  p.causal = CLARY_CAUSAL_OFFSET;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    refuse(token, "expected causal=top_left, bottom_right or an integer");
  p.causal_offset = value;
}

// Tokens that are one word, or a word and a value after '='. False: not one of them.
bool parse_word(std::string_view token, Problem& p) {
  std::string_view rest = token;
  const int dtype = find_name(kDTypes, token), precision = find_name(kPrecisions, token);
  if (dtype >= 0)
    p.dtype = static_cast<DType>(dtype);
  else if (precision >= 0)
    p.precision = static_cast<clary_precision>(precision);
  else if (token == "bhsd")
    p.layout = CLARY_BHSD;
  else if (token == "bshd")
    p.layout = CLARY_BSHD;
  else if (token == "alibi")
    p.alibi = true;
  else if (token == "sinks")
    p.sinks = true;
  else if (token == "causal")
    p.causal = CLARY_CAUSAL_BOTTOM_RIGHT;
  else if (token == "out=f32")
    p.out_f32 = true;
  else if (token == "mask_dtype=input")
    p.mask_input_type = true;
  else if (take(rest, "precision="))
    p.precision = static_cast<clary_precision>(parse_name(token, kPrecisions, rest));
  else if (take(rest, "data="))
    p.data = static_cast<Data>(parse_name(token, kData, rest));
  else if (take(rest, "causal="))
    parse_causal(token, rest, p);
  else if (take(rest, "mask="))
    parse_mask(token, rest, p);
  else if (take(rest, "lens_q="))
    p.lens_q = parse_lengths(token, rest);
  else if (take(rest, "lens_k="))
    p.lens_k = parse_lengths(token, rest);
  else
    return false;
  return true;
}

// Tokens that are a letter or word followed directly by a number.
bool parse_number(std::string_view token, Problem& p, bool& has_dv) {
  constexpr double kAny = -std::numeric_limits<double>::infinity();
  std::string_view rest = token;
  if (take(rest, "window")) {
    const auto sides = split(rest, ',');
    if (sides.size() != 2) refuse(token, "expected windowLEFT,RIGHT, -1 = open");
    p.window_left = parse_int(token, sides[0], -1);
    p.window_right = parse_int(token, sides[1], -1);
  } else if (take(rest, "softcap"))
    p.softcap = parse_real(token, rest, 0);
  else if (take(rest, "scale"))
    p.softmax_scale = parse_real(token, rest, kAny), p.has_scale = true;
  else if (take(rest, "guard"))
    p.guard = parse_real(token, rest, 0);
  else if (take(rest, "seed"))
    p.seed = static_cast<uint64_t>(parse_int(token, rest, 0));
  else if (take(rest, "hkv"))
    p.heads_kv = parse_int(token, rest, 1);
  else if (take(rest, "hq"))
    p.heads_q = parse_int(token, rest, 1);
  else if (take(rest, "h"))
    p.heads_q = p.heads_kv = parse_int(token, rest, 1);
  else if (take(rest, "lq"))
    p.len_q = parse_int(token, rest, 0);
  else if (take(rest, "lk"))
    p.len_k = parse_int(token, rest, 0);
  else if (take(rest, "l"))
    p.len_q = p.len_k = parse_int(token, rest, 0);
  else if (take(rest, "dv"))
    p.dim_v = parse_int(token, rest, 1), has_dv = true;
  else if (take(rest, "d"))
    p.dim_qk = parse_int(token, rest, 1);
  else if (take(rest, "b"))
    p.batch = parse_int(token, rest, 0);
  else
    return false;
  return true;
}

// What no single token can tell: parts that must fit together, and sizes that one machine holds.
void check_whole(std::string_view line, Problem& p) {
  if (p.heads_q % p.heads_kv != 0) refuse(line, "hq must be a multiple of hkv");
  if (p.lens_q.size() != p.lens_k.size()) refuse(line, "lens_q and lens_k go together, one number per sequence");
  if (!p.lens_q.empty()) {
    p.batch = static_cast<int64_t>(p.lens_q.size());
    p.len_q = *std::max_element(p.lens_q.begin(), p.lens_q.end());
    p.len_k = *std::max_element(p.lens_k.begin(), p.lens_k.end());
  }
  if (p.dim_qk > 1024 || p.dim_v > 1024) refuse(line, "head dims are at most 1024");
  const double heads = static_cast<double>(p.batch) * static_cast<double>(p.heads_q);
  const double elements = heads * static_cast<double>(std::max(p.len_q, p.len_k)) * 1024;
  if (elements > 0x1p44 || p.batch > 1 << 20 || p.heads_q > 1 << 20)
    refuse(line, "the tensors of this problem would not fit");
}

std::string number(double value) {
  char text[40];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value);
  return error == std::errc() ? std::string(text, end) : "0";
}

std::string lengths_text(const std::vector<int32_t>& lengths) {
  std::string text;
  for (const int32_t n : lengths) text += (text.empty() ? "" : ",") + std::to_string(n);
  return text;
}

std::string mask_text(const Problem& p) {
  std::string text = std::string(" mask=") + kMasks[static_cast<int>(p.mask)] + ":" + number(p.mask_keep);
  if (p.mask_broadcast) text += ":";
  for (int n = 0; n < 4; ++n)
    if (p.mask_broadcast >> n & 1) text += kDimensions[n];
  return text;
}

struct ElementType {
  const char* name;
  uint8_t code, bits;
};

ElementType element_type(const std::string& name) {
  constexpr ElementType kTypes[] = {{"f32", 2, 32}, {"f16", 2, 16}, {"bf16", 4, 16}, {"bool", 6, 8}, {"i32", 0, 32}};
  for (const ElementType& type : kTypes)
    if (name == type.name) return type;
  throw std::invalid_argument("Tensor: dtype '" + name + "': expected f32, f16, bf16, bool or i32");
}

// The 4-D index counts from the last dimension; dimensions of size 1 broadcast.
int64_t offset_of(const clary_tensor& view, const int64_t (&index)[4]) {
  int64_t offset = 0;
  for (int n = 0; n < view.ndim; ++n)
    if (view.shape[n] != 1) offset += index[4 - view.ndim + n] * view.strides[n];
  return offset;
}

std::vector<int32_t> prefix_sums(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> sums(lengths.size() + 1, 0);
  std::partial_sum(lengths.begin(), lengths.end(), sums.begin() + 1);
  return sums;
}

Tensor make_mask(const Problem& p) {
  if (p.mask == MaskKind::key_padding) return Tensor("bool", {p.batch, 1, 1, p.len_k});
  const int64_t full[4] = {p.batch, p.heads_q, p.len_q, p.len_k};
  std::vector<int64_t> shape;
  for (int n = 0; n < 4; ++n) shape.push_back(p.mask_broadcast >> n & 1 ? 1 : full[n]);
  if (p.mask != MaskKind::additive) return Tensor("bool", shape);
  return Tensor(p.mask_input_type ? name_of(p.dtype) : "f32", shape);
}

}  // namespace

int64_t length_q(const Problem& problem, int64_t batch) {
  return problem.lens_q.empty() ? problem.len_q : problem.lens_q[static_cast<size_t>(batch)];
}

int64_t length_k(const Problem& problem, int64_t batch) {
  return problem.lens_k.empty() ? problem.len_k : problem.lens_k[static_cast<size_t>(batch)];
}

int64_t alignment_offset(const Problem& problem, int64_t batch) {
  if (problem.causal == CLARY_CAUSAL_TOP_LEFT) return 0;
  if (problem.causal == CLARY_CAUSAL_OFFSET) return problem.causal_offset;
  return length_k(problem, batch) - length_q(problem, batch);
}

double scale_of(const Problem& problem) {
  return problem.has_scale ? problem.softmax_scale : 1 / std::sqrt(static_cast<double>(problem.dim_qk));
}

const char* name_of(DType dtype) { return kDTypes[static_cast<int>(dtype)]; }
const char* name_of(clary_precision precision) { return kPrecisions[precision]; }

Problem parse_problem(std::string_view line) {
  Problem problem;
  bool has_dv = false, has_dtype = false, any = false;
  for (const auto token : split(line, ' ')) {
    if (token.empty()) continue;
    any = true;
    // "bf16" is both a dtype and a precision: the second one of a line is the precision.
    const bool dtype = find_name(kDTypes, token) >= 0;
    if (dtype && has_dtype && token == "bf16")
      problem.precision = CLARY_BF16;
    else if (!parse_word(token, problem) && !parse_number(token, problem, has_dv))
      refuse(token, "not a word of the grammar (see docs/benchmarks.md)");
    has_dtype |= dtype;
  }
  if (!any) refuse(line, "the problem is empty; for example 'b1 hq32 hkv8 l4096 d128 causal bf16 int8'");
  if (!has_dv) problem.dim_v = problem.dim_qk;
  check_whole(line, problem);
  return problem;
}

std::string to_string(const Problem& p) {
  std::string s;
  if (p.lens_q.empty()) s = "b" + std::to_string(p.batch);
  s += (s.empty() ? "hq" : " hq") + std::to_string(p.heads_q) + " hkv" + std::to_string(p.heads_kv);
  if (p.lens_q.empty())
    s += " lq" + std::to_string(p.len_q) + " lk" + std::to_string(p.len_k);
  else
    s += " lens_q=" + lengths_text(p.lens_q) + " lens_k=" + lengths_text(p.lens_k);
  s += " d" + std::to_string(p.dim_qk) + " dv" + std::to_string(p.dim_v);
  if (p.causal == CLARY_CAUSAL_OFFSET)
    s += " causal=" + std::to_string(p.causal_offset);
  else if (p.causal != CLARY_NOT_CAUSAL)
    s += std::string(" causal=") + kCausals[p.causal];
  if (p.window_left >= 0 || p.window_right >= 0)
    s += " window" + std::to_string(p.window_left) + "," + std::to_string(p.window_right);
  if (p.softcap != 0) s += " softcap" + number(p.softcap);
  if (p.has_scale) s += " scale" + number(p.softmax_scale);
  if (p.alibi) s += " alibi";
  if (p.sinks) s += " sinks";
  if (p.mask != MaskKind::none || p.mask_broadcast != 0 || p.mask_keep != 0.5) s += mask_text(p);
  if (p.mask_input_type) s += " mask_dtype=input";
  s += std::string(" ") + name_of(p.dtype);
  if (p.out_f32) s += " out=f32";
  s += p.precision == CLARY_BF16 ? " precision=bf16" : std::string(" ") + name_of(p.precision);
  if (p.layout == CLARY_BSHD) s += " bshd";
  if (p.data != Data::normal) s += std::string(" data=") + kData[static_cast<int>(p.data)];
  if (p.guard != 0) s += " guard" + number(p.guard);
  return s + " seed" + std::to_string(p.seed);
}

Tensor::Tensor(std::string dtype, std::vector<int64_t> shape, std::vector<int64_t> strides)
    : dtype_(std::move(dtype)), shape_(std::move(shape)), strides_(std::move(strides)) {
  const ElementType type = element_type(dtype_);
  if (strides_.empty()) {
    strides_.resize(shape_.size());
    int64_t stride = 1;
    for (size_t n = shape_.size(); n-- > 0; stride *= shape_[n]) strides_[n] = stride;
  }
  if (strides_.size() != shape_.size()) throw std::invalid_argument("Tensor: shape and strides differ in length");
  int64_t last = 0;  // offset of the last element
  bool any = true;
  for (size_t n = 0; n < shape_.size(); ++n) any = any && shape_[n] > 0, last += (shape_[n] - 1) * strides_[n];
  bytes_.resize(any ? static_cast<size_t>(last + 1) * (type.bits / 8) : 0);
  view_.device_type = 1;
  view_.ndim = static_cast<int32_t>(shape_.size());
  view_.dtype_code = type.code;
  view_.dtype_bits = type.bits;
  view_.dtype_lanes = 1;
  rebind();
}

Tensor::Tensor(const Tensor& other)
    : dtype_(other.dtype_), shape_(other.shape_), strides_(other.strides_), bytes_(other.bytes_), view_(other.view_) {
  rebind();
}

Tensor::Tensor(Tensor&& other) noexcept
    : dtype_(std::move(other.dtype_)),
      shape_(std::move(other.shape_)),
      strides_(std::move(other.strides_)),
      bytes_(std::move(other.bytes_)),
      view_(other.view_) {
  rebind();
}

Tensor& Tensor::operator=(Tensor other) noexcept {
  dtype_.swap(other.dtype_);
  shape_.swap(other.shape_);
  strides_.swap(other.strides_);
  bytes_.swap(other.bytes_);
  view_ = other.view_;
  rebind();
  return *this;
}

void Tensor::rebind() {
  view_.data = bytes_.data();
  view_.shape = shape_.data();
  view_.strides = strides_.data();
}

double Tensor::at(int64_t a, int64_t b, int64_t c, int64_t d) const {
  const std::byte* element = bytes_.data() + offset_of(view_, {a, b, c, d}) * (view_.dtype_bits / 8);
  if (view_.dtype_bits == 8) return static_cast<double>(static_cast<int>(*element));
  if (view_.dtype_bits == 16) {
    uint16_t bits;
    std::memcpy(&bits, element, 2);
    return view_.dtype_code == 4 ? float_from_bf16(bits) : float_from_f16(bits);
  }
  float value;
  int32_t integer;
  std::memcpy(&value, element, 4);
  std::memcpy(&integer, element, 4);
  return view_.dtype_code == 0 ? static_cast<double>(integer) : static_cast<double>(value);
}

void Tensor::set(int64_t a, int64_t b, int64_t c, int64_t d, double value) {
  std::byte* element = bytes_.data() + offset_of(view_, {a, b, c, d}) * (view_.dtype_bits / 8);
  const float single = static_cast<float>(value);
  if (view_.dtype_bits == 8) {
    *element = static_cast<std::byte>(value != 0);
  } else if (view_.dtype_bits == 16) {
    const uint16_t bits = view_.dtype_code == 4 ? bf16_from_float(single) : f16_from_float(single);
    std::memcpy(element, &bits, 2);
  } else if (view_.dtype_code == 0) {
    const int32_t integer = static_cast<int32_t>(value);
    std::memcpy(element, &integer, 4);
  } else {
    std::memcpy(element, &single, 4);
  }
}

Tensors make_tensors(const Problem& p) {
  Tensors t;
  int64_t batch = p.batch, len_q = p.len_q, len_k = p.len_k;
  if (!p.lens_q.empty()) {
    t.cu_seqlens_q = prefix_sums(p.lens_q);
    t.cu_seqlens_k = prefix_sums(p.lens_k);
    batch = 1, len_q = t.cu_seqlens_q.back(), len_k = t.cu_seqlens_k.back();
  }
  const auto shape = [&](int64_t heads, int64_t length, int64_t dim) {
    std::vector<int64_t> s = {batch, heads, length, dim};
    if (p.layout == CLARY_BSHD) std::swap(s[1], s[2]);
    return s;
  };
  const std::string dtype = name_of(p.dtype);
  t.q = Tensor(dtype, shape(p.heads_q, len_q, p.dim_qk));
  t.k = Tensor(dtype, shape(p.heads_kv, len_k, p.dim_qk));
  t.v = Tensor(dtype, shape(p.heads_kv, len_k, p.dim_v));
  t.out = Tensor(p.out_f32 ? "f32" : dtype, shape(p.heads_q, len_q, p.dim_v));
  t.lse = Tensor("f32", {batch, p.heads_q, len_q});
  fill_q(p, t.q);
  fill_k(p, t.k);
  fill_v(p, t.v);
  if (p.alibi) t.alibi_slopes = Tensor("f32", {p.heads_q}), fill_alibi_slopes(t.alibi_slopes);
  if (p.sinks) t.sinks = Tensor("f32", {p.heads_q}), fill_sinks(p, t.sinks);
  if (p.mask != MaskKind::none) t.mask = make_mask(p), fill_mask(p, t.mask);
  return t;
}

clary_attention_params make_params(const Problem& p, const Tensors& t) {
  clary_attention_params params;
  clary_attention_params_init(&params);
  params.layout = p.layout;
  params.precision = p.precision;
  params.causal = p.causal;
  params.causal_offset = p.causal_offset;
  if (p.has_scale) params.softmax_scale = p.softmax_scale;
  params.softcap = p.softcap;
  params.window_left = p.window_left;
  params.window_right = p.window_right;
  params.mask = t.mask.empty() ? nullptr : t.mask.view();
  params.alibi_slopes = t.alibi_slopes.empty() ? nullptr : t.alibi_slopes.view();
  params.sinks = t.sinks.empty() ? nullptr : t.sinks.view();
  if (!t.cu_seqlens_q.empty()) {
    params.cu_seqlens_q = t.cu_seqlens_q.data();
    params.cu_seqlens_k = t.cu_seqlens_k.data();
    params.num_sequences = static_cast<int64_t>(t.cu_seqlens_q.size()) - 1;
  }
  if (p.guard > 0) params.guard = p.guard;
  return params;
}

}  // namespace clary::support
