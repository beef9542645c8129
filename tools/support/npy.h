// NumPy's .npy files, format versions 1.0 to 3.0: little-endian float32, float16, bool and uint8 (a mask), C order.
#pragma once

#include <string>

#include "support/problem.h"
#include "support/source.h"

namespace clary::support {

// A dense tensor; bool and uint8 both become "bool" (non-zero = true). FileError where the file is not as it should be.
Tensor read_npy(const Source& source);
Tensor read_npy(const std::string& path);

// Writes a dense "f32", "f16" or "bool" tensor as version 1.0; std::runtime_error where the file cannot be written.
void write_npy(const std::string& path, const Tensor& tensor);

}  // namespace clary::support
