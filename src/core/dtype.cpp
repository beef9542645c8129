#include "core/dtype.h"

namespace clary {

const char* name(DType type) {
  switch (type) {
    case DType::f32: return "f32";
    case DType::f16: return "f16";
    case DType::bf16: return "bf16";
    case DType::boolean: return "bool";
  }
  return "?";
}

}  // namespace clary
