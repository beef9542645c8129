// sm_100 and its family (B200, GB300), by mma.sync: INT8 Q K^T with P V in f16; f16 and bf16. Nothing uses tcgen05.
//
// Budgets: see sm80.cu.
//
// budget: mma bf16 bf16 32 | registers 255 | spills 0 | loop 580
// budget: mma bf16 bf16 64 | registers 255 | spills 0 | loop 790
// budget: mma bf16 bf16 96 | registers 255 | spills 12 | loop 900
// budget: mma bf16 bf16 128 | registers 255 | spills 15 | loop 1210
// budget: mma bf16 bf16 192 | registers 255 | spills 0 | loop 540
// budget: mma bf16 bf16 256 | registers 255 | spills 0 | loop 670
// budget: mma f16 f16 32 | registers 255 | spills 0 | loop 580
// budget: mma f16 f16 64 | registers 255 | spills 0 | loop 790
// budget: mma f16 f16 96 | registers 255 | spills 12 | loop 900
// budget: mma f16 f16 128 | registers 255 | spills 15 | loop 1210
// budget: mma f16 f16 192 | registers 255 | spills 0 | loop 540
// budget: mma f16 f16 256 | registers 255 | spills 0 | loop 670
// budget: mma s8 f16 32 | registers 255 | spills 0 | loop 600
// budget: mma s8 f16 64 | registers 255 | spills 0 | loop 830
// budget: mma s8 f16 96 | registers 255 | spills 6 | loop 920
// budget: mma s8 f16 128 | registers 255 | spills 44 | loop 1210
// budget: mma s8 f16 192 | registers 255 | spills 0 | loop 530
// budget: mma s8 f16 256 | registers 255 | spills 7 | loop 650
#include "cuda/launch/launch.cuh"

namespace clary::cuda {

struct Sm100 : WarpOps, ConvertOps, SharedOps, MmaOps {
  static constexpr bool kHasE4m3 = false;
};

const ArchKernels& kernels_sm100() { return arch_kernels<Sm100, KernelsSm100>("sm_100f"); }

}  // namespace clary::cuda
