// A library without the CUDA backend says so.
#include "core/status.h"
#include "cuda/backend.h"

namespace clary::cuda {
namespace {

clary_status absent() {
  return fail(CLARY_UNSUPPORTED, "q: is on device_type 2 (CUDA), and this library was built without CUDA kernels");
}

}  // namespace

clary_status attention(const Problem&, const Tensors&) { return absent(); }
clary_status workspace_bytes(const Problem&, size_t&) { return absent(); }

}  // namespace clary::cuda
