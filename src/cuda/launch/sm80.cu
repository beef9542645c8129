// sm_80 and sm_86 (A100; RTX 30): INT8 and INT4 Q K^T, P V in f16; f16 and bf16.
//
// Budgets of the loop over full tiles (scripts/check_cuda_kernels.py), about a twentieth above what nvcc 13.0 makes.
// At dim 128 two strips of 16 queries per warp need all registers: a few addresses are read back from local memory, in
// a loop of a thousand instructions.
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
// budget: mma s4 f16 32 | registers 255 | spills 0 | loop 790
// budget: mma s4 f16 64 | registers 255 | spills 0 | loop 880
// budget: mma s4 f16 96 | registers 255 | spills 0 | loop 980
// budget: mma s4 f16 128 | registers 255 | spills 34 | loop 1070
// budget: mma s4 f16 192 | registers 255 | spills 0 | loop 550
// budget: mma s4 f16 256 | registers 255 | spills 0 | loop 610
// budget: mma s8 f16 32 | registers 255 | spills 0 | loop 700
// budget: mma s8 f16 64 | registers 255 | spills 0 | loop 820
// budget: mma s8 f16 96 | registers 255 | spills 0 | loop 940
// budget: mma s8 f16 128 | registers 255 | spills 20 | loop 1040
// budget: mma s8 f16 192 | registers 255 | spills 0 | loop 540
// budget: mma s8 f16 256 | registers 255 | spills 0 | loop 610
#include "cuda/launch/launch.cuh"

namespace clary::cuda {

struct Sm80 : WarpOps, ConvertOps, SharedOps, MmaOps {
  static constexpr bool kHasE4m3 = false;
};

const ArchKernels& kernels_sm80() { return arch_kernels<Sm80, KernelsSm80>("sm_80"); }

}  // namespace clary::cuda
