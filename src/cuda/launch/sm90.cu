// sm_90a (H100, H200): wgmma with TMA copies; INT8 with 16-bit P V by mma.sync.
#include "cuda/arch/barrier.h"
#include "cuda/arch/wgmma.h"
#include "cuda/launch/launch.cuh"

namespace clary::cuda {

struct Sm90 : WarpOps, ConvertOps, SharedOps, MmaOps, BarrierOps, WgmmaOps {
  static constexpr bool kHasE4m3 = true;
};

const ArchKernels& kernels_sm90() { return arch_kernels<Sm90, KernelsSm90>("sm_90a"); }

}  // namespace clary::cuda
