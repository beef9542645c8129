// Tensor views as calls read them: checked, right-aligned to four dimensions, sizes and strides by meaning.
#pragma once

#include <cstdint>
#include <cstring>

#include "clary/clary.h"
#include "core/dtype.h"
#include "core/status.h"
#include "problem/problem.h"

namespace clary {

#define CLARY_REJECT(...) return fail(CLARY_INVALID_ARGUMENT, __VA_ARGS__)

inline constexpr int64_t kMaxHeadDim = 1024;

// A tensor in the terms of its call: sizes and strides by meaning, broadcast dimensions with stride 0.
struct View {
  int ndim = 0;
  int64_t shape[4] = {1, 1, 1, 1}, strides[4] = {0, 0, 0, 0};  // right-aligned
  DType type = DType::f32;
  char* data = nullptr;
  bool empty = false;
  bool data_later = false;  // a plan learns the pointers of q, k, v, out and lse when it runs
  Device device;            // where it has to be
};

// `what` names the tensor in messages. The last dimension must have stride 1.
clary_status read_view(const char* what, const clary_tensor* t, int min_ndim, int max_ndim, View& view);

// Enumerations arrive as whatever number the caller wrote; loading one that is out of range as an enum is undefined.
template <class Enum>
int number(const Enum& value) {
  static_assert(sizeof(Enum) == sizeof(int));
  int x = 0;
  std::memcpy(&x, &value, sizeof x);
  return x;
}

clary_status check_layout(const clary_layout& layout);

// [B, H, L, D] or [B, L, H, D] in the order B, H, L, D.
void apply_layout(clary_layout layout, View& view);

}  // namespace clary
