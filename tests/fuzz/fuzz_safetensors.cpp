// Any bytes as a .safetensors file: tensors or a FileError that lies within the file, never anything else.
#include <cstdlib>

#include "support/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace clary::support;
  try {
    const Safetensors file{Source(std::as_bytes(std::span(data, size)), "input")};
    for (const Safetensors::Entry& entry : file.entries()) {
      if (entry.begin > entry.end || entry.end > size || file.find(entry.name) != &entry) std::abort();
      try {
        file.load(entry);
      } catch (const FileError& error) {  // a type that Clary does not take
        if (error.offset() > size) std::abort();
      }
    }
  } catch (const FileError& error) {
    if (error.offset() > size) std::abort();
  }
  return 0;
}
