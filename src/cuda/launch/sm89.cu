// sm_89 (RTX 40, L4, L40): as sm_80, with P V in FP8.
//
// Budgets: see sm80.cu.
//
// budget: mma bf16 bf16 64 | registers 255 | spills 0 | loop 800
// budget: mma bf16 bf16 128 | registers 255 | spills 4 | loop 1090
// budget: mma bf16 bf16 256 | registers 255 | spills 0 | loop 670
// budget: mma f16 f16 64 | registers 255 | spills 0 | loop 800
// budget: mma f16 f16 128 | registers 255 | spills 4 | loop 1090
// budget: mma f16 f16 256 | registers 255 | spills 0 | loop 670
// budget: mma s4 e4m3 64 | registers 255 | spills 0 | loop 870
// budget: mma s4 e4m3 128 | registers 255 | spills 14 | loop 1050
// budget: mma s4 e4m3 256 | registers 255 | spills 0 | loop 820
// budget: mma s8 e4m3 64 | registers 255 | spills 0 | loop 810
// budget: mma s8 e4m3 128 | registers 255 | spills 12 | loop 1010
// budget: mma s8 e4m3 256 | registers 255 | spills 0 | loop 820
// budget: mma s8 f16 64 | registers 255 | spills 0 | loop 860
// budget: mma s8 f16 128 | registers 255 | spills 17 | loop 1070
// budget: mma s8 f16 256 | registers 255 | spills 0 | loop 640
#include "cuda/launch/launch.cuh"

namespace clary::cuda {

struct Sm89 : WarpOps, ConvertOps, SharedOps, MmaOps {
  static constexpr bool kHasE4m3 = true;
};

const ArchKernels& kernels_sm89() { return arch_kernels<Sm89, KernelsSm89>("sm_89"); }

}  // namespace clary::cuda
