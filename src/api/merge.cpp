// clary_merge: results over disjoint sets of keys become one.
#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "api/context.h"
#include "cpu/isa/scalar.h"
#include "problem/problem.h"
#include "problem/view.h"

namespace clary {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Rows per unit of parallel work: enough to hide the hand-out of one, few enough to share a single head.
constexpr int64_t kRowsPerTask = 64;
constexpr int64_t kMostParts = 1 << 20;

struct Part {
  View out, lse;
};

int64_t offset(const View& view, int64_t b, int64_t h, int64_t i) {
  return b * view.strides[0] + h * view.strides[1] + i * view.strides[2];
}

// An LSE is [B, H, L]: one dimension short of its output.
int64_t lse_offset(const View& view, int64_t b, int64_t h, int64_t i) {
  return b * view.strides[1] + h * view.strides[2] + i * view.strides[3];
}

void store(const View& view, int64_t index, double value) {
  const auto x = static_cast<float>(value);
  if (view.type == DType::f32)
    reinterpret_cast<float*>(view.data)[index] = x;
  else
    reinterpret_cast<uint16_t*>(view.data)[index] =
        view.type == DType::f16 ? Scalar::f32_to_f16(x) : Scalar::f32_to_bf16(x);
}

class Merge {
 public:
  Merge(const std::vector<Part>& parts, const Part& result, bool has_lse)
      : parts_(parts), result_(result), has_lse_(has_lse) {}

  void row(int64_t b, int64_t h, int64_t i) const {
    double top = -kInfinity, denominator = 0, sum[kMaxHeadDim] = {};
    for (const Part& part : parts_) top = std::max(top, lse(part, b, h, i));
    const int64_t dim = result_.out.shape[3];
    for (const Part& part : parts_) {
      const double part_lse = lse(part, b, h, i);
      if (part_lse == -kInfinity) continue;
      const double weight = std::exp(part_lse - top);
      denominator += weight;
      const int64_t from = offset(part.out, b, h, i);
      for (int64_t c = 0; c < dim; ++c) sum[c] += weight * element(part.out.data, part.out.type, from + c);
    }
    const int64_t to = offset(result_.out, b, h, i);
    for (int64_t c = 0; c < dim; ++c) store(result_.out, to + c, denominator == 0 ? 0 : sum[c] / denominator);
    if (has_lse_) store(result_.lse, lse_offset(result_.lse, b, h, i), top + std::log(denominator));
  }

  void rows(const Parallel& parallel) const {
    const int64_t* shape = result_.out.shape;
    const int64_t tasks_per_head = (shape[2] + kRowsPerTask - 1) / kRowsPerTask;
    parallel.for_each(shape[0] * shape[1] * tasks_per_head, [&](int64_t task, int) {
      const int64_t head = task / tasks_per_head, first = task % tasks_per_head * kRowsPerTask;
      for (int64_t i = first; i < std::min(first + kRowsPerTask, shape[2]); ++i)
        row(head / shape[1], head % shape[1], i);
    });
  }

 private:
  static double lse(const Part& part, int64_t b, int64_t h, int64_t i) {
    return element(part.lse.data, part.lse.type, lse_offset(part.lse, b, h, i));
  }

  const std::vector<Part>& parts_;
  const Part& result_;
  const bool has_lse_;
};

clary_status read_out(const char* what, const clary_tensor* tensor, clary_layout layout, View& view) {
  CLARY_TRY(read_view(what, tensor, 4, 4, view));
  apply_layout(layout, view);
  if (view.type == DType::boolean) CLARY_REJECT("%s: is bool, allowed are f32, f16 and bf16", what);
  return CLARY_OK;
}

clary_status read_lse(const char* what, const clary_tensor* tensor, const View& out, View& view) {
  CLARY_TRY(read_view(what, tensor, 3, 3, view));
  if (view.type != DType::f32) CLARY_REJECT("%s: is %s, must be f32", what, name(view.type));
  for (int d = 0; d < 3; ++d)
    if (view.shape[d + 1] != out.shape[d])
      CLARY_REJECT("%s: shape[%d] is %" PRId64 ", must be that of its output, %" PRId64, what, d, view.shape[d + 1],
                   out.shape[d]);
  return CLARY_OK;
}

clary_status check_same_shape(const char* what, const View& view, const View& out) {
  static constexpr const char* kDims[4] = {"batch size", "number of heads", "length", "head dim"};
  for (int d = 0; d < 4; ++d)
    if (view.shape[d] != out.shape[d])
      CLARY_REJECT("%s: %s is %" PRId64 ", must be that of out, %" PRId64, what, kDims[d], view.shape[d], out.shape[d]);
  return CLARY_OK;
}

clary_status check_distinct_rows(const char* what, const View& view) {
  for (int d = 0; d < 4; ++d)
    if (view.shape[d] > 1 && view.strides[d] == 0 && !view.empty)
      CLARY_REJECT("%s: has a stride of 0: rows would overwrite each other", what);
  return CLARY_OK;
}

clary_status merge(const clary_tensor* const* outs, const clary_tensor* const* lses, int64_t count, clary_layout layout,
                   const clary_tensor* out, const clary_tensor* lse, clary_context* context) {
  CLARY_TRY(check_layout(layout));
  if (count < 1 || count > kMostParts)
    CLARY_REJECT("count: is %" PRId64 ", allowed are 1 to %" PRId64, count, kMostParts);
  if (outs == nullptr || lses == nullptr) CLARY_REJECT("%s: is NULL", outs == nullptr ? "outs" : "lses");
  Part result;
  CLARY_TRY(read_out("out", out, layout, result.out));
  CLARY_TRY(check_distinct_rows("out", result.out));
  if (result.out.shape[3] < 1 || result.out.shape[3] > kMaxHeadDim)
    CLARY_REJECT("out: head dim is %" PRId64 ", allowed are 1 to %" PRId64, result.out.shape[3], kMaxHeadDim);
  if (lse != nullptr) {
    CLARY_TRY(read_lse("lse", lse, result.out, result.lse));
    CLARY_TRY(check_distinct_rows("lse", result.lse));
  }
  std::vector<Part> parts(static_cast<size_t>(count));
  for (size_t p = 0; p < parts.size(); ++p) {
    CLARY_TRY(read_out("outs", outs[p], layout, parts[p].out));
    CLARY_TRY(check_same_shape("outs", parts[p].out, result.out));
    CLARY_TRY(read_lse("lses", lses[p], parts[p].out, parts[p].lse));
  }
  const Merge merge(parts, result, lse != nullptr);
  if (context == nullptr) {
    merge.rows(Parallel{});
    return CLARY_OK;
  }
  const std::lock_guard lock(context->mutex);
  merge.rows(context->parallel);
  return CLARY_OK;
}

}  // namespace
}  // namespace clary

clary_status clary_merge(const clary_tensor* const* outs, const clary_tensor* const* lses, int64_t count,
                         clary_layout layout, const clary_tensor* out, const clary_tensor* lse,
                         clary_context* context) {
  clary::clear_error();
  try {
    return clary::merge(outs, lses, count, layout, out, lse, context);
  } catch (const std::bad_alloc&) {
    return clary::fail(CLARY_OUT_OF_MEMORY, "count: no memory for %" PRId64 " parts", count);
  }
}
