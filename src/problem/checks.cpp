// Argument checks: from tensor views and parameters to a canonical Problem, or a reason that names the argument.
#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstring>

#include "core/status.h"
#include "problem/problem.h"
#include "problem/view.h"

namespace clary {
namespace {

// Batch entries times heads beyond this cannot be tensors in memory.
constexpr int64_t kMaxCount = int64_t{1} << 24;
// Offsets stop here, and windows from here on are open: sums of a row, an offset and a window stay within 64 bits.
constexpr int64_t kFarAway = int64_t{1} << 61;

Strides strides_of(const View& view) { return {view.strides[0], view.strides[1], view.strides[2]}; }

clary_status check_enums(const clary_attention_params& p) {
  CLARY_TRY(check_layout(p.layout));
  if (number(p.precision) < CLARY_EXACT || number(p.precision) > CLARY_BF16X3)
    CLARY_REJECT("precision: is %d, allowed are CLARY_EXACT (0) to CLARY_BF16X3 (6)", number(p.precision));
  if (number(p.causal) < CLARY_NOT_CAUSAL || number(p.causal) > CLARY_CAUSAL_OFFSET)
    CLARY_REJECT("causal: is %d, allowed are CLARY_NOT_CAUSAL (0) to CLARY_CAUSAL_OFFSET (3)", number(p.causal));
  return CLARY_OK;
}

clary_status check_scalars(const clary_attention_params& p, Problem& problem) {
  CLARY_TRY(check_enums(p));
  if (std::isinf(p.softmax_scale) || std::fabs(p.softmax_scale) > 1e30)
    CLARY_REJECT("softmax_scale: is %g, must be finite (|scale| <= 1e30; NaN = default)", p.softmax_scale);
  if (!(p.softcap >= 0) || p.softcap > 1e30) CLARY_REJECT("softcap: is %g, allowed are 0 (none) to 1e30", p.softcap);
  if (p.window_left < -1) CLARY_REJECT("window_left: is %" PRId64 ", allowed are -1 (open) and up", p.window_left);
  if (p.window_right < -1) CLARY_REJECT("window_right: is %" PRId64 ", allowed are -1 (open) and up", p.window_right);
  if (!std::isnan(p.guard) && (!(p.guard > 0) || std::isinf(p.guard)))
    CLARY_REJECT("guard: is %g, must be a finite number > 0 (NaN = none)", p.guard);
  if (p.guard_rows < 1 || p.guard_rows > 64) CLARY_REJECT("guard_rows: is %d, allowed are 1 to 64", p.guard_rows);
  problem.precision = p.precision;
  problem.softmax_scale = static_cast<float>(
      std::isnan(p.softmax_scale) ? 1.0 / std::sqrt(static_cast<double>(problem.dim_qk)) : p.softmax_scale);
  problem.softcap = static_cast<float>(p.softcap);
  problem.causal = p.causal;
  problem.causal_offset = std::clamp(p.causal_offset, -kFarAway, kFarAway);
  problem.window_left = p.window_left < kFarAway ? p.window_left : -1;
  problem.window_right = p.window_right < kFarAway ? p.window_right : -1;
  problem.guard = std::isnan(p.guard) ? 0 : p.guard;
  problem.guard_rows = p.guard_rows;
  return CLARY_OK;
}

clary_status check_cu_seqlens(const char* what, const int32_t* cu, int64_t sequences, int64_t total, int64_t& longest) {
  if (cu[0] != 0) CLARY_REJECT("%s: begins with %d, must begin with 0", what, cu[0]);
  longest = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    if (cu[s + 1] < cu[s])
      CLARY_REJECT("%s: entry %" PRId64 " is %d, less than the one before (%d)", what, s + 1, cu[s + 1], cu[s]);
    longest = std::max<int64_t>(longest, cu[s + 1] - cu[s]);
  }
  if (cu[sequences] != total)
    CLARY_REJECT("%s: ends with %d, must end with the length of the tensor, %" PRId64, what, cu[sequences], total);
  return CLARY_OK;
}

clary_status check_longest(const clary_attention_params& p, Problem& problem) {
  const auto check = [](const char* what, int64_t given, int64_t total, int64_t& longest) {
    if (given < 0 || given > total)
      CLARY_REJECT("%s: is %" PRId64 ", allowed are 0 to the length of the tensor, %" PRId64, what, given, total);
    longest = given;
    return CLARY_OK;
  };
  CLARY_TRY(check("max_len_q", p.max_len_q, problem.len_q, problem.max_len_q));
  return check("max_len_k", p.max_len_k, problem.len_k, problem.max_len_k);
}

// What only a CUDA call may set. The rest of the library never looks at these.
clary_status check_device_fields(const clary_attention_params& p, Problem& problem) {
  Device& device = problem.device;
  device.stream = p.stream, device.workspace = p.workspace, device.workspace_bytes = p.workspace_bytes;
  const bool varlen = device.is_cuda() && p.cu_seqlens_q != nullptr;
  if (!varlen && (p.max_len_q != 0 || p.max_len_k != 0))
    CLARY_REJECT("max_len_q, max_len_k: given, but are for cu_seqlens of CUDA tensors");
  if (device.is_cuda()) return CLARY_OK;
  if (p.stream != nullptr || p.workspace != nullptr || p.workspace_bytes != 0)
    CLARY_REJECT("stream, workspace: given, but q is on the CPU");
  return CLARY_OK;
}

clary_status check_varlen(const clary_attention_params& p, int64_t batch, Problem& problem) {
  problem.sequences = batch;
  problem.max_len_q = problem.len_q, problem.max_len_k = problem.len_k;
  if (p.cu_seqlens_q == nullptr && p.cu_seqlens_k == nullptr) {
    if (p.num_sequences != 0)
      CLARY_REJECT("num_sequences: is %" PRId64 " without cu_seqlens, must be 0", p.num_sequences);
    return CLARY_OK;
  }
  if (p.cu_seqlens_q == nullptr || p.cu_seqlens_k == nullptr)
    CLARY_REJECT("%s: is NULL, but the other one of cu_seqlens_q and cu_seqlens_k is given",
                 p.cu_seqlens_q == nullptr ? "cu_seqlens_q" : "cu_seqlens_k");
  if (batch != 1) CLARY_REJECT("cu_seqlens_q: given, so q must have batch size 1, not %" PRId64, batch);
  if (p.num_sequences < 0 || p.num_sequences > kMaxCount)
    CLARY_REJECT("num_sequences: is %" PRId64 ", allowed are 0 to %" PRId64, p.num_sequences, kMaxCount);
  problem.sequences = p.num_sequences;
  problem.cu_seqlens_q = p.cu_seqlens_q, problem.cu_seqlens_k = p.cu_seqlens_k;
  if (problem.device.is_cuda()) return check_longest(p, problem);  // cu_seqlens are the device's
  CLARY_TRY(check_cu_seqlens("cu_seqlens_q", p.cu_seqlens_q, p.num_sequences, problem.len_q, problem.max_len_q));
  CLARY_TRY(check_cu_seqlens("cu_seqlens_k", p.cu_seqlens_k, p.num_sequences, problem.len_k, problem.max_len_k));
  return CLARY_OK;
}

clary_status check_mask(const clary_tensor* t, Problem& problem) {
  if (t == nullptr) return CLARY_OK;
  if (t->dtype_lanes == 1 && (t->dtype_code == 0 || (t->dtype_code == 1 && t->dtype_bits != 8)))
    CLARY_REJECT("mask: integer masks are not served; pass bool or uint8 (non-zero = attend), f32 or the type of q");
  View view;
  view.device = problem.device;
  CLARY_TRY(read_view("mask", t, 0, 4, view));
  if (view.type != DType::boolean && view.type != DType::f32 && view.type != problem.dtype)
    CLARY_REJECT("mask: is %s, allowed are bool, f32 and the type of q (%s)", name(view.type), name(problem.dtype));
  const int64_t full[4] = {problem.sequences, problem.heads_q, problem.max_len_q, problem.max_len_k};
  static constexpr const char* kDims[4] = {"B", "Hq", "Lq", "Lk"};
  for (int d = 0; d < 4; ++d) {
    // A varlen mask may be longer than the longest sequence: it is indexed within each.
    const bool longer = problem.cu_seqlens_q != nullptr && d >= 2 && view.shape[d] >= full[d];
    if (view.shape[d] != 1 && view.shape[d] != full[d] && !longer)
      CLARY_REJECT("mask: dimension %s is %" PRId64 ", allowed are 1 and %" PRId64, kDims[d], view.shape[d], full[d]);
    if (full[d] == 1 && !longer) view.strides[d] = 0;
  }
  problem.mask = {view.type == DType::boolean ? Mask::Kind::boolean : Mask::Kind::additive,
                  view.type,
                  view.data,
                  view.strides[0],
                  view.strides[1],
                  view.strides[2],
                  view.strides[3]};
  return CLARY_OK;
}

// alibi_slopes and sinks: f32 [Hq], the former also [B, Hq].
clary_status check_per_head(const char* what, const clary_tensor* t, int max_ndim, const Problem& problem,
                            const float*& data, int64_t& batch_stride, int64_t& head_stride) {
  if (t == nullptr) return CLARY_OK;
  View view;
  view.device = problem.device;
  CLARY_TRY(read_view(what, t, 1, max_ndim, view));
  if (view.type != DType::f32) CLARY_REJECT("%s: is %s, must be f32", what, name(view.type));
  if (view.shape[3] != problem.heads_q)
    CLARY_REJECT("%s: has %" PRId64 " entries per batch, must have Hq = %" PRId64, what, view.shape[3],
                 problem.heads_q);
  if (view.ndim == 2 && view.shape[2] != problem.sequences)
    CLARY_REJECT("%s: first dimension is %" PRId64 ", must be B = %" PRId64, what, view.shape[2], problem.sequences);
  data = reinterpret_cast<const float*>(view.data);
  batch_stride = view.ndim == 2 ? view.strides[2] : 0;
  head_stride = view.strides[3];
  return CLARY_OK;
}

clary_status check_extras(const clary_attention_params& p, Problem& problem) {
  CLARY_TRY(check_mask(p.mask, problem));
  CLARY_TRY(check_per_head("alibi_slopes", p.alibi_slopes, 2, problem, problem.alibi_slopes, problem.alibi_batch,
                           problem.alibi_head));
  int64_t unused = 0;
  return check_per_head("sinks", p.sinks, 1, problem, problem.sinks, unused, problem.sinks_head);
}

clary_status check_qkv_shapes(const View& q, const View& k, const View& v, Problem& problem) {
  const auto differs = [](const char* what, const char* dim, int64_t is, const char* other, int64_t must) {
    return fail(CLARY_INVALID_ARGUMENT, "%s: %s is %" PRId64 ", must be that of %s, %" PRId64, what, dim, is, other,
                must);
  };
  if (k.shape[0] != q.shape[0]) return differs("k", "batch size", k.shape[0], "q", q.shape[0]);
  if (v.shape[0] != q.shape[0]) return differs("v", "batch size", v.shape[0], "q", q.shape[0]);
  if (k.shape[3] != q.shape[3]) return differs("k", "head dim", k.shape[3], "q", q.shape[3]);
  if (v.shape[1] != k.shape[1]) return differs("v", "number of heads", v.shape[1], "k", k.shape[1]);
  if (v.shape[2] != k.shape[2]) return differs("v", "length", v.shape[2], "k", k.shape[2]);
  if (q.shape[3] < 1 || q.shape[3] > kMaxHeadDim)
    CLARY_REJECT("q: head dim is %" PRId64 ", allowed are 1 to %" PRId64, q.shape[3], kMaxHeadDim);
  if (v.shape[3] < 1 || v.shape[3] > kMaxHeadDim)
    CLARY_REJECT("v: head dim is %" PRId64 ", allowed are 1 to %" PRId64, v.shape[3], kMaxHeadDim);
  if (k.shape[1] < 1) CLARY_REJECT("k: number of heads is 0, must be at least 1");
  if (q.shape[1] % k.shape[1] != 0)
    CLARY_REJECT("q: number of heads is %" PRId64 ", must be a multiple of that of k, %" PRId64, q.shape[1],
                 k.shape[1]);
  if (q.shape[0] > kMaxCount || q.shape[1] > kMaxCount || q.shape[0] * q.shape[1] > kMaxCount)
    CLARY_REJECT("q: batch size times heads is more than %" PRId64, kMaxCount);
  problem.heads_q = q.shape[1], problem.heads_kv = k.shape[1];
  problem.group = q.shape[1] / k.shape[1];
  problem.len_q = q.shape[2], problem.len_k = k.shape[2];
  problem.dim_qk = q.shape[3], problem.dim_v = v.shape[3];
  return CLARY_OK;
}

clary_status check_qkv_types(const View& q, const View& k, const View& v, Problem& problem) {
  if (q.type == DType::boolean) CLARY_REJECT("q: is bool, allowed are f32, f16 and bf16");
  if (k.type != q.type) CLARY_REJECT("k: is %s, must be of the type of q, %s", name(k.type), name(q.type));
  if (v.type != q.type) CLARY_REJECT("v: is %s, must be of the type of q, %s", name(v.type), name(q.type));
  problem.dtype = q.type;
  return CLARY_OK;
}

clary_status check_outputs(const View& q, const clary_tensor* out_tensor, const clary_tensor* lse_tensor,
                           clary_layout layout, bool data_later, Problem& problem, Tensors& tensors) {
  View out;
  out.data_later = data_later, out.device = problem.device;
  CLARY_TRY(read_view("out", out_tensor, 4, 4, out));
  apply_layout(layout, out);
  if (out.type != problem.dtype && out.type != DType::f32)
    CLARY_REJECT("out: is %s, allowed are f32 and the type of q, %s", name(out.type), name(problem.dtype));
  const int64_t must[4] = {q.shape[0], problem.heads_q, problem.len_q, problem.dim_v};
  static constexpr const char* kDims[4] = {"batch size", "number of heads", "length", "head dim"};
  for (int d = 0; d < 4; ++d) {
    if (out.shape[d] != must[d])
      CLARY_REJECT("out: %s is %" PRId64 ", must be %" PRId64, kDims[d], out.shape[d], must[d]);
    if (out.strides[d] == 0 && out.shape[d] > 1 && !out.empty)
      CLARY_REJECT("out: the stride of its %s is 0: rows would overwrite each other", kDims[d]);
  }
  problem.out = strides_of(out), problem.out_dtype = out.type;
  tensors.out = out.data;
  if (lse_tensor == nullptr) return CLARY_OK;
  View lse;
  lse.data_later = data_later, lse.device = problem.device;
  CLARY_TRY(read_view("lse", lse_tensor, 3, 3, lse));
  if (lse.type != DType::f32) CLARY_REJECT("lse: is %s, must be f32", name(lse.type));
  for (int d = 0; d < 3; ++d) {
    if (lse.shape[d + 1] != must[d])
      CLARY_REJECT("lse: %s is %" PRId64 ", must be %" PRId64, kDims[d], lse.shape[d + 1], must[d]);
    if (lse.strides[d + 1] == 0 && lse.shape[d + 1] > 1 && !lse.empty)
      CLARY_REJECT("lse: the stride of its %s is 0: rows would overwrite each other", kDims[d]);
  }
  problem.lse = {lse.strides[1], lse.strides[2], lse.strides[3]};
  problem.has_lse = true;
  tensors.lse = reinterpret_cast<float*>(lse.data);
  return CLARY_OK;
}

// Older callers know fewer fields (the rest keep their defaults), newer ones more (which must be zero).
clary_status read_params(const clary_attention_params* given, clary_attention_params& params) {
  clary_attention_params_init(&params);
  if (given == nullptr) return CLARY_OK;
  constexpr size_t kSmallest = offsetof(clary_attention_params, mask);
  // Fields end at multiples of 8, so a size that is none would cut one in two.
  if (given->size < kSmallest || given->size > 4096 || given->size % 8 != 0)
    CLARY_REJECT("params.size: is %zu, must be sizeof(clary_attention_params), here %zu", given->size, sizeof params);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof params; i < given->size; ++i)
    if (bytes[i] != 0)
      CLARY_REJECT("params: sets a field (byte %zu) that this version %s does not know", i, clary_version());
  std::memcpy(&params, given, std::min(given->size, sizeof params));
  return CLARY_OK;
}

}  // namespace

clary_status make_problem(const clary_tensor* q_tensor, const clary_tensor* k_tensor, const clary_tensor* v_tensor,
                          const clary_tensor* out, const clary_tensor* lse, const clary_attention_params* given,
                          bool data_later, Problem& problem, Tensors& tensors) {
  clary_attention_params params;
  CLARY_TRY(read_params(given, params));
  CLARY_TRY(check_enums(params));
  View q, k, v;
  q.data_later = k.data_later = v.data_later = data_later;
  if (q_tensor != nullptr && q_tensor->device_type == 2)
    problem.device.type = 2, problem.device.id = q_tensor->device_id;
  q.device = k.device = v.device = problem.device;
  CLARY_TRY(read_view("q", q_tensor, 4, 4, q));
  CLARY_TRY(read_view("k", k_tensor, 4, 4, k));
  CLARY_TRY(read_view("v", v_tensor, 4, 4, v));
  apply_layout(params.layout, q), apply_layout(params.layout, k), apply_layout(params.layout, v);
  CLARY_TRY(check_qkv_types(q, k, v, problem));
  CLARY_TRY(check_qkv_shapes(q, k, v, problem));
  CLARY_TRY(check_outputs(q, out, lse, params.layout, data_later, problem, tensors));
  CLARY_TRY(check_scalars(params, problem));
  CLARY_TRY(check_device_fields(params, problem));
  CLARY_TRY(check_varlen(params, q.shape[0], problem));
  CLARY_TRY(check_extras(params, problem));
  problem.q = strides_of(q), problem.k = strides_of(k), problem.v = strides_of(v);
  tensors.q = q.data, tensors.k = k.data, tensors.v = v.data;
  return CLARY_OK;
}

}  // namespace clary
