// Times of whole calls and of their halves.
#pragma once

#include <string>

namespace clary::check {

// The square problems of docs/gpu.md: 8k to 32k tokens, 32 heads. Writes JSON to `path`, a table to stdout.
int bench(const std::string& path);

// Kernels that might be faster than those that ship (attention/variants.h), on the same packed arrays: 16k tokens, 32
// heads. Each must give the output of the kernel that ships, to within the rounding of FP8. Writes JSON to `path`, a
// table to stdout; returns how many are wrong. On another GPU than sm_90 it says so and measures nothing.
int variants(const std::string& path);

}  // namespace clary::check
