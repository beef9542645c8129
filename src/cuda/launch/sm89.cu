// sm_89 (RTX 40, L4, L40): as sm_80, with P V in FP8.
#include "cuda/launch/launch.cuh"

namespace clary::cuda {

struct Sm89 : WarpOps, ConvertOps, SharedOps, MmaOps {
  static constexpr bool kHasE4m3 = true;
};

const ArchKernels& kernels_sm89() { return arch_kernels<Sm89, KernelsSm89>("sm_89"); }

}  // namespace clary::cuda
