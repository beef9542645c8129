// Element types of tensors.
#pragma once

#include <cstdint>

namespace clary {

enum class DType : uint8_t { f32, f16, bf16, boolean };

constexpr int size_bytes(DType type) { return type == DType::f32 ? 4 : type == DType::boolean ? 1 : 2; }
const char* name(DType type);

}  // namespace clary
