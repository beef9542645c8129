// Any bytes as a .npy file: a tensor or a FileError that lies within the file, never anything else.
#include <cstdlib>

#include "support/npy.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace clary::support;
  try {
    const Tensor tensor = read_npy(Source(std::as_bytes(std::span(data, size)), "input"));
    uint64_t elements = 1;
    for (const int64_t dimension : tensor.shape()) elements *= static_cast<uint64_t>(dimension);
    if (elements > size) std::abort();
  } catch (const FileError& error) {
    if (error.offset() > size) std::abort();
  }
  return 0;
}
