// CLARY_VERBOSE=1 in the environment: one line to stderr per refused instruction set and per run.
#pragma once

#include <cstdlib>

namespace clary {

inline bool is_verbose() {
  const char* value = std::getenv("CLARY_VERBOSE");
  return value != nullptr && value[0] == '1';
}

}  // namespace clary
