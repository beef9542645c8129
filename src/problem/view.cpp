#include "problem/view.h"

#include <algorithm>
#include <cinttypes>
#include <utility>

namespace clary {
namespace {

// Lengths and counts beyond this cannot be tensors in memory; the bound keeps every product below in 64 bits.
constexpr int64_t kMaxLength = int64_t{1} << 31, kMaxRows = int64_t{1} << 40;

clary_status element_type(const char* what, const clary_tensor& t, DType& type) {
  if (t.dtype_lanes != 1) CLARY_REJECT("%s: dtype_lanes is %d, must be 1", what, t.dtype_lanes);
  if (t.dtype_code == 2 && t.dtype_bits == 32)
    type = DType::f32;
  else if (t.dtype_code == 2 && t.dtype_bits == 16)
    type = DType::f16;
  else if (t.dtype_code == 4 && t.dtype_bits == 16)
    type = DType::bf16;
  else if ((t.dtype_code == 6 || t.dtype_code == 1) && t.dtype_bits == 8)
    type = DType::boolean;
  else
    return fail(CLARY_UNSUPPORTED,
                "%s: dtype (code %d, %d bits) is not served; allowed are f32, f16 and bf16 (masks: also bool)", what,
                t.dtype_code, t.dtype_bits);
  return CLARY_OK;
}

clary_status check_device(const char* what, const clary_tensor& t, const Device& device) {
  if (t.device_type != 1 && t.device_type != 2)
    return fail(CLARY_UNSUPPORTED, "%s: device_type is %d, served are 1 (CPU) and 2 (CUDA)", what, t.device_type);
  if (t.device_type != device.type || (device.is_cuda() && t.device_id != device.id))
    return fail(CLARY_UNSUPPORTED, "%s: is on device_type %d, device_id %d, must be on %d, %d like q", what,
                t.device_type, t.device_id, device.type, device.id);
  return CLARY_OK;
}

}  // namespace

clary_status read_view(const char* what, const clary_tensor* t, int min_ndim, int max_ndim, View& view) {
  if (t == nullptr) CLARY_REJECT("%s: is NULL", what);
  CLARY_TRY(check_device(what, *t, view.device));
  if (t->ndim < min_ndim || t->ndim > max_ndim)
    CLARY_REJECT("%s: has %d dimensions, allowed are %d to %d", what, t->ndim, min_ndim, max_ndim);
  if (t->ndim > 0 && t->shape == nullptr) CLARY_REJECT("%s: shape is NULL", what);
  CLARY_TRY(element_type(what, *t, view.type));
  view.ndim = t->ndim;
  int64_t dense = 1, count = 1;
  for (int d = t->ndim - 1; d >= 0; --d) {
    const int at = d + 4 - t->ndim;
    const int64_t size = t->shape[d];
    if (size < 0 || size > kMaxLength)
      CLARY_REJECT("%s: shape[%d] is %" PRId64 ", allowed are 0 to %" PRId64, what, d, size, kMaxLength);
    if (size > 0 && count > kMaxRows * kMaxHeadDim / size) CLARY_REJECT("%s: has more than 2^50 elements", what);
    count *= size;
    const int64_t stride = t->strides != nullptr ? t->strides[d] : dense;
    if (size > 1 && (stride > kMaxRows * kMaxHeadDim || stride < -kMaxRows * kMaxHeadDim))
      CLARY_REJECT("%s: strides[%d] is %" PRId64 ", allowed are -2^50 to 2^50", what, d, stride);
    view.shape[at] = size;
    view.strides[at] = size == 1 ? 0 : stride;
    dense *= std::max<int64_t>(size, 1);
  }
  view.empty = count == 0;
  if (!view.empty && view.shape[3] > 1 && view.strides[3] != 1)
    CLARY_REJECT("%s: stride of the last dimension is %" PRId64 ", must be 1", what, view.strides[3]);
  if (t->data == nullptr && count > 0 && !view.data_later)
    CLARY_REJECT("%s: data is NULL but the shape is not empty", what);
  view.data = static_cast<char*>(t->data) + (t->data == nullptr ? 0 : t->byte_offset);
  if (view.type != DType::boolean &&
      reinterpret_cast<uintptr_t>(view.data) % static_cast<unsigned>(size_bytes(view.type)) != 0)
    CLARY_REJECT("%s: data is not aligned to its elements of %d bytes", what, size_bytes(view.type));
  return CLARY_OK;
}

clary_status check_layout(const clary_layout& layout) {
  if (number(layout) < CLARY_BHSD || number(layout) > CLARY_BSHD)
    CLARY_REJECT("layout: is %d, allowed are CLARY_BHSD (0) and CLARY_BSHD (1)", number(layout));
  return CLARY_OK;
}

void apply_layout(clary_layout layout, View& view) {
  if (layout != CLARY_BSHD) return;
  std::swap(view.shape[1], view.shape[2]);
  std::swap(view.strides[1], view.strides[2]);
}

}  // namespace clary
