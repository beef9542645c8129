// sm_120 (RTX 50), and as PTX whatever comes later and lies between (sm_100): FP8 P V, no 4-bit products.
#include "cuda/launch/launch.cuh"

namespace clary::cuda {

struct Sm120 : WarpOps, ConvertOps, SharedOps, MmaOps {
  static constexpr bool kHasE4m3 = true;
};

const ArchKernels& kernels_sm120() { return arch_kernels<Sm120, KernelsSm120>("sm_120"); }

}  // namespace clary::cuda
