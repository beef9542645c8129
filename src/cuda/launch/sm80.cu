// sm_80 and sm_86 (A100; RTX 30): INT8 and INT4 Q K^T, P V in f16; f16 and bf16.
#include "cuda/launch/launch.cuh"

namespace clary::cuda {

struct Sm80 : WarpOps, ConvertOps, SharedOps, MmaOps {
  static constexpr bool kHasE4m3 = false;
};

const ArchKernels& kernels_sm80() { return arch_kernels<Sm80, KernelsSm80>("sm_80"); }

}  // namespace clary::cuda
