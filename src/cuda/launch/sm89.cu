// sm_89 (RTX 40, L4, L40): as sm_80, with P V in FP8.
//
// Budgets: see sm80.cu.
//
// budget: mma bf16 bf16 32 | registers 255 | spills 0 | loop 640
// budget: mma bf16 bf16 64 | registers 255 | spills 0 | loop 760
// budget: mma bf16 bf16 96 | registers 255 | spills 0 | loop 900
// budget: mma bf16 bf16 128 | registers 255 | spills 0 | loop 1010
// budget: mma bf16 bf16 192 | registers 255 | spills 0 | loop 560
// budget: mma bf16 bf16 256 | registers 255 | spills 0 | loop 640
// budget: mma f16 f16 32 | registers 255 | spills 0 | loop 640
// budget: mma f16 f16 64 | registers 255 | spills 0 | loop 760
// budget: mma f16 f16 96 | registers 255 | spills 0 | loop 900
// budget: mma f16 f16 128 | registers 255 | spills 0 | loop 1010
// budget: mma f16 f16 192 | registers 255 | spills 0 | loop 560
// budget: mma f16 f16 256 | registers 255 | spills 0 | loop 640
// budget: mma s4 e4m3 32 | registers 255 | spills 0 | loop 760
// budget: mma s4 e4m3 64 | registers 255 | spills 0 | loop 840
// budget: mma s4 e4m3 96 | registers 255 | spills 0 | loop 950
// budget: mma s4 e4m3 128 | registers 255 | spills 20 | loop 1030
// budget: mma s4 e4m3 192 | registers 255 | spills 0 | loop 710
// budget: mma s4 e4m3 256 | registers 255 | spills 0 | loop 790
// budget: mma s8 e4m3 32 | registers 255 | spills 0 | loop 670
// budget: mma s8 e4m3 64 | registers 255 | spills 0 | loop 780
// budget: mma s8 e4m3 96 | registers 255 | spills 0 | loop 890
// budget: mma s8 e4m3 128 | registers 255 | spills 10 | loop 980
// budget: mma s8 e4m3 192 | registers 255 | spills 0 | loop 700
// budget: mma s8 e4m3 256 | registers 255 | spills 0 | loop 780
// budget: mma s8 f16 32 | registers 255 | spills 0 | loop 700
// budget: mma s8 f16 64 | registers 255 | spills 0 | loop 820
// budget: mma s8 f16 96 | registers 255 | spills 0 | loop 940
// budget: mma s8 f16 128 | registers 255 | spills 20 | loop 1040
// budget: mma s8 f16 192 | registers 255 | spills 0 | loop 540
// budget: mma s8 f16 256 | registers 255 | spills 0 | loop 610
#include "cuda/launch/launch.cuh"

namespace clary::cuda {

struct Sm89 : WarpOps, ConvertOps, SharedOps, MmaOps {
  static constexpr bool kHasE4m3 = true;
};

const ArchKernels& kernels_sm89() { return arch_kernels<Sm89, KernelsSm89>("sm_89"); }

}  // namespace clary::cuda
