// Times of whole calls and of their halves.
#pragma once

#include <string>

namespace clary::check {

// The square problems of docs/gpu.md: 8k to 32k tokens, 32 heads. Writes JSON to `path`, a table to stdout.
int bench(const std::string& path);

}  // namespace clary::check
