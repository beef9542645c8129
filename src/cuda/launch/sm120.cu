// sm_120 (RTX 50), and as PTX whatever comes later and lies between (sm_110): FP8 P V, no 4-bit products.
//
// Budgets: see sm80.cu. nvcc 13.0 schedules more loads ahead here than registers allow at dims 128 and 256.
//
// budget: mma bf16 bf16 32 | registers 255 | spills 0 | loop 640
// budget: mma bf16 bf16 64 | registers 255 | spills 0 | loop 790
// budget: mma bf16 bf16 96 | registers 255 | spills 20 | loop 1070
// budget: mma bf16 bf16 128 | registers 255 | spills 15 | loop 1210
// budget: mma bf16 bf16 192 | registers 255 | spills 1 | loop 600
// budget: mma bf16 bf16 256 | registers 255 | spills 0 | loop 670
// budget: mma f16 f16 32 | registers 255 | spills 0 | loop 640
// budget: mma f16 f16 64 | registers 255 | spills 0 | loop 790
// budget: mma f16 f16 96 | registers 255 | spills 20 | loop 1070
// budget: mma f16 f16 128 | registers 255 | spills 15 | loop 1210
// budget: mma f16 f16 192 | registers 255 | spills 1 | loop 600
// budget: mma f16 f16 256 | registers 255 | spills 0 | loop 670
// budget: mma s8 e4m3 32 | registers 255 | spills 0 | loop 570
// budget: mma s8 e4m3 64 | registers 255 | spills 0 | loop 760
// budget: mma s8 e4m3 96 | registers 255 | spills 0 | loop 890
// budget: mma s8 e4m3 128 | registers 255 | spills 24 | loop 1040
// budget: mma s8 e4m3 192 | registers 255 | spills 0 | loop 710
// budget: mma s8 e4m3 256 | registers 255 | spills 16 | loop 830
// budget: mma s8 f16 32 | registers 255 | spills 0 | loop 650
// budget: mma s8 f16 64 | registers 255 | spills 0 | loop 830
// budget: mma s8 f16 96 | registers 255 | spills 4 | loop 1020
// budget: mma s8 f16 128 | registers 255 | spills 44 | loop 1210
// budget: mma s8 f16 192 | registers 255 | spills 0 | loop 560
// budget: mma s8 f16 256 | registers 255 | spills 7 | loop 650
#include "cuda/launch/launch.cuh"

namespace clary::cuda {

struct Sm120 : WarpOps, ConvertOps, SharedOps, MmaOps {
  static constexpr bool kHasE4m3 = true;
};

const ArchKernels& kernels_sm120() { return arch_kernels<Sm120, KernelsSm120>("sm_120"); }

}  // namespace clary::cuda
