// sm_120 (RTX 50), and as PTX whatever comes later and lies between (sm_100): FP8 P V, no 4-bit products.
//
// Budgets: see sm80.cu. nvcc 13.0 schedules more loads ahead here than registers allow at dims 128 and 256.
//
// budget: mma bf16 bf16 64 | registers 255 | spills 0 | loop 830
// budget: mma bf16 bf16 128 | registers 255 | spills 36 | loop 1270
// budget: mma bf16 bf16 256 | registers 255 | spills 0 | loop 700
// budget: mma f16 f16 64 | registers 255 | spills 0 | loop 830
// budget: mma f16 f16 128 | registers 255 | spills 36 | loop 1270
// budget: mma f16 f16 256 | registers 255 | spills 0 | loop 700
// budget: mma s8 e4m3 64 | registers 255 | spills 0 | loop 790
// budget: mma s8 e4m3 128 | registers 255 | spills 53 | loop 1120
// budget: mma s8 e4m3 256 | registers 255 | spills 32 | loop 880
// budget: mma s8 f16 64 | registers 255 | spills 0 | loop 880
// budget: mma s8 f16 128 | registers 255 | spills 65 | loop 1250
// budget: mma s8 f16 256 | registers 255 | spills 10 | loop 680
#include "cuda/launch/launch.cuh"

namespace clary::cuda {

struct Sm120 : WarpOps, ConvertOps, SharedOps, MmaOps {
  static constexpr bool kHasE4m3 = true;
};

const ArchKernels& kernels_sm120() { return arch_kernels<Sm120, KernelsSm120>("sm_120"); }

}  // namespace clary::cuda
