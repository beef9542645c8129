// Arguments of every kind, from bytes: whatever the shapes, strides and fields, a call answers with a status and
// touches only memory that the views describe. Each tensor lies in its own arena. A view that would leave it is only
// ever checked (clary_plan_create), never computed with; a mask that would leave it is not passed at all, for a plan
// reads masks.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "clary/clary.h"

namespace {

constexpr size_t kArenaBytes = 1 << 16;
constexpr int kMaxDims = 6;

// Bytes in, values out; zeros once they are used up.
class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint8_t byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }
  bool one_in(int n) { return byte() % n == 0; }
  template <class T>
  T raw() {
    T value;
    std::array<uint8_t, sizeof(T)> bytes;
    for (uint8_t& b : bytes) b = byte();
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

// A size or stride that no honest caller passes.
int64_t hostile(Reader& in) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  constexpr std::array kValues = {
      int64_t{-1}, int64_t{0},           int64_t{1} << 31, (int64_t{1} << 32) + 1,
      kMost,       kMost / 2 + 1,        int64_t{1025},    std::numeric_limits<int64_t>::min(),
      int64_t{3},  int64_t{-kMost / 16}, kMost / 1024,     int64_t{1} << 62};
  return in.one_in(4) ? in.raw<int64_t>() : kValues[in.byte() % kValues.size()];
}

// A view with its own shape and strides; `fits` when all its elements lie in its arena.
struct View {
  std::vector<uint8_t> arena = std::vector<uint8_t>(kArenaBytes);
  std::array<int64_t, kMaxDims> shape{}, strides{};
  clary_tensor tensor{};

  void start(const std::array<int64_t, 4>& dims, int ndim, uint8_t code, uint8_t bits) {
    tensor = {arena.data(), 1, 0, ndim, code, bits, 1, shape.data(), nullptr, 0};
    shape = {};
    std::copy(dims.begin(), dims.end(), shape.begin());
  }

  void use_strides() {
    int64_t stride = 1;
    for (int i = kMaxDims - 1; i >= 0; --i) {
      strides[i] = stride;
      if (i < tensor.ndim)
        stride = static_cast<int64_t>(static_cast<uint64_t>(stride) * static_cast<uint64_t>(shape[i]));
    }
    tensor.strides = strides.data();
  }

  bool fits() const {
    if (tensor.ndim < 0 || tensor.ndim > kMaxDims || tensor.shape == nullptr || tensor.data == nullptr) return false;
    constexpr int64_t kFar = int64_t{1} << 40;  // far beyond the arena, and products of two do not overflow
    __int128 low = 0, high = 0, dense = 1;
    for (int i = tensor.ndim - 1; i >= 0; --i) {
      if (shape[i] < 0) return false;
      if (shape[i] == 0) return true;
      const __int128 step = tensor.strides != nullptr ? static_cast<__int128>(strides[i]) : dense;
      if (shape[i] > 1 && (shape[i] > kFar || step > kFar || step < -kFar)) return false;
      const __int128 reach = step * (shape[i] - 1);
      (reach < 0 ? low : high) += reach;
      dense *= shape[i];
      if (dense > kFar) return false;
    }
    const __int128 bytes = std::max<int>(tensor.dtype_bits, 8) / 8;
    const __int128 begin = static_cast<__int128>(tensor.byte_offset);
    return low * bytes + begin >= 0 && (high + 1) * bytes + begin <= static_cast<__int128>(kArenaBytes);
  }
};

void mutate(Reader& in, View& view) {
  switch (in.byte() % 12) {
    case 0: view.shape[in.byte() % kMaxDims] = hostile(in); break;
    case 1: view.use_strides(), view.strides[in.byte() % kMaxDims] = hostile(in); break;
    case 2: view.use_strides(), view.strides[in.byte() % 4] = in.byte() % 64; break;
    case 3: view.tensor.ndim = static_cast<int8_t>(in.byte()) % (kMaxDims + 1); break;
    case 4: view.tensor.dtype_code = in.byte() % 8; break;
    case 5: view.tensor.dtype_bits = in.byte(); break;
    case 6: view.tensor.dtype_lanes = in.byte(); break;
    case 7: view.tensor.device_type = in.byte(); break;
    case 8: view.tensor.byte_offset = in.one_in(2) ? in.byte() * 4u : in.raw<uint64_t>(); break;
    case 9: view.tensor.data = nullptr; break;
    case 10: view.tensor.shape = nullptr; break;
    default: view.shape[in.byte() % kMaxDims] = in.byte() % 20; break;
  }
}

struct Call {
  View q, k, v, out, lse, mask, slopes, sinks;
  std::array<int32_t, 5> cu_seqlens_q{}, cu_seqlens_k{};
  clary_attention_params params{};
  bool with_lse = false;
};

double real(Reader& in) {
  constexpr std::array kValues = {0.0,
                                  1.0,
                                  -1.0,
                                  0.125,
                                  30.0,
                                  1e30,
                                  1e-30,
                                  std::numeric_limits<double>::infinity(),
                                  std::numeric_limits<double>::quiet_NaN()};
  return in.one_in(8) ? in.raw<double>() : kValues[in.byte() % kValues.size()];
}

void fill_params(Reader& in, Call& call) {
  clary_attention_params& p = call.params;
  clary_attention_params_init(&p);
  p.layout = static_cast<clary_layout>(in.byte() % 2);
  p.precision = static_cast<clary_precision>(in.byte() % 7);
  p.causal = static_cast<clary_causal>(in.byte() % 4);
  p.causal_offset = static_cast<int8_t>(in.byte());
  if (in.one_in(3)) p.softcap = real(in);
  if (in.one_in(3)) p.softmax_scale = real(in);
  if (in.one_in(3)) p.guard = real(in);
  if (in.one_in(3)) p.guard_rows = in.byte() % 70;
  if (in.one_in(3)) p.window_left = static_cast<int8_t>(in.byte());
  if (in.one_in(3)) p.window_right = static_cast<int8_t>(in.byte());
  if (!in.one_in(8)) return;
  switch (in.byte() % 5) {
    case 0: p.size = in.byte() * 8u; break;  // whole fields, as every version of the struct has
    case 1: p.precision = static_cast<clary_precision>(in.byte() & 7); break;  // the bits that the enum has
    case 2: p.causal_offset = hostile(in); break;
    case 3: p.window_left = hostile(in); break;
    default: p.window_right = hostile(in); break;
  }
}

void fill_tensors(Reader& in, Call& call) {
  const int64_t batch = in.byte() % 3, group = 1 + in.byte() % 3, heads_kv = 1 + in.byte() % 2;
  const int64_t len_q = in.byte() % 20, len_k = in.one_in(8) ? in.raw<uint16_t>() % 300 : in.byte() % 24;
  const int64_t dim_qk = 1 + in.byte() % 20, dim_v = 1 + in.byte() % 20, heads_q = group * heads_kv;
  const bool bshd = call.params.layout == CLARY_BSHD;
  const auto dims = [bshd](int64_t b, int64_t h, int64_t l, int64_t d) {
    return bshd ? std::array{b, l, h, d} : std::array{b, h, l, d};
  };
  constexpr uint8_t kCodes[] = {2, 2, 4}, kBits[] = {32, 16, 16};
  const int type = in.byte() % 3;
  call.q.start(dims(batch, heads_q, len_q, dim_qk), 4, kCodes[type], kBits[type]);
  call.k.start(dims(batch, heads_kv, len_k, dim_qk), 4, kCodes[type], kBits[type]);
  call.v.start(dims(batch, heads_kv, len_k, dim_v), 4, kCodes[type], kBits[type]);
  const int out_type = in.one_in(2) ? 0 : type;
  call.out.start(dims(batch, heads_q, len_q, dim_v), 4, kCodes[out_type], kBits[out_type]);
  call.lse.start({batch, heads_q, len_q, 0}, 3, 2, 32);
  const std::array mask_dims = {in.one_in(2) ? batch : 1, in.one_in(2) ? heads_q : 1, in.one_in(3) ? 1 : len_q, len_k};
  const int mask_type = in.byte() % 3;
  call.mask.start(mask_dims, 4, mask_type == 0 ? 6 : kCodes[type], mask_type == 0 ? 8 : kBits[type]);
  call.slopes.start({heads_q, 0, 0, 0}, 1, 2, 32);
  call.sinks.start({heads_q, 0, 0, 0}, 1, 2, 32);
  for (View* view : {&call.q, &call.k, &call.v, &call.mask, &call.slopes, &call.sinks})
    for (size_t i = 0; i < 64; ++i) view->arena[i * 61] = in.byte();
}

// cu_seqlens arrays of `num_sequences` + 1 entries, right or wrong.
void fill_varlen(Reader& in, Call& call) {
  call.params.num_sequences = in.byte() % call.cu_seqlens_q.size();
  for (auto* ends : {&call.cu_seqlens_q, &call.cu_seqlens_k})
    for (size_t i = 1; i < ends->size(); ++i)
      (*ends)[i] = in.one_in(16) ? in.raw<int32_t>() : (*ends)[i - 1] + in.byte() % 8;
  if (!in.one_in(8)) call.params.cu_seqlens_q = call.cu_seqlens_q.data();
  if (!in.one_in(8)) call.params.cu_seqlens_k = call.cu_seqlens_k.data();
  if (in.one_in(16)) call.params.num_sequences = -in.byte();
}

void fill_call(Reader& in, Call& call) {
  fill_params(in, call);
  fill_tensors(in, call);
  call.with_lse = in.one_in(2);
  for (int mutations = in.byte() % 4; mutations > 0; --mutations) {
    const std::array views = {&call.q, &call.k, &call.v, &call.out, &call.lse, &call.mask, &call.slopes, &call.sinks};
    mutate(in, *views[in.byte() % views.size()]);
  }
  if (in.one_in(3) && call.mask.fits()) call.params.mask = &call.mask.tensor;
  if (in.one_in(3) && call.slopes.fits()) call.params.alibi_slopes = &call.slopes.tensor;
  if (in.one_in(3) && call.sinks.fits()) call.params.sinks = &call.sinks.tensor;
  if (in.one_in(4)) fill_varlen(in, call);
}

// One context per instruction set of this CPU, for the life of the process.
const std::vector<clary_context*>& contexts() {
  static const auto& all = *new std::vector<clary_context*>([] {
    std::vector<clary_context*> made;
    for (int i = 0; i < clary_isa_count(); ++i) {
      if (clary_isa_supported(i) == 0) continue;
      clary_context_options options;
      clary_context_options_init(&options);
      options.threads = 2;
      options.isa = clary_isa_name(i);
      clary_context* context = nullptr;
      if (clary_context_create(&options, &context) != CLARY_OK) std::abort();
      made.push_back(context);
    }
    return made;
  }());
  return all;
}

// A failure gives a reason; success leaves none.
void expect_reason(clary_status status) {
  const bool has_reason = clary_last_error()[0] != 0;
  if (has_reason != (status != CLARY_OK) || status == CLARY_INTERNAL) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader in(data, size);
  clary_context* context = contexts()[in.byte() % contexts().size()];
  static Call call;  // its arenas are large
  call.cu_seqlens_q = call.cu_seqlens_k = {};
  fill_call(in, call);

  const clary_tensor* lse = call.with_lse ? &call.lse.tensor : nullptr;
  clary_plan* plan = nullptr;
  const clary_status planned = clary_plan_create(&call.q.tensor, &call.k.tensor, &call.v.tensor, &call.out.tensor, lse,
                                                 &call.params, context, &plan);
  expect_reason(planned);
  if (planned == CLARY_OK) {
    std::array<char, 256> text;
    clary_plan_describe(plan, text.data(), text.size());
    clary_plan_destroy(plan);
  }
  const bool fits = call.q.fits() && call.k.fits() && call.v.fits() && call.out.fits() && (!lse || call.lse.fits());
  if (!fits) return 0;
  const clary_status status =
      clary_attention(&call.q.tensor, &call.k.tensor, &call.v.tensor, &call.out.tensor, lse, &call.params, context);
  expect_reason(status);
  if ((status == CLARY_OK) != (planned == CLARY_OK)) std::abort();  // both check the same
  return 0;
}
