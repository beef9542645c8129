// sm_90a (H100, H200): wgmma with TMA copies; INT8 with 16-bit P V by mma.sync.
//
// Budgets: see sm80.cu. The loops of the wgmma kernels touch no local memory. Their 168 registers are those of the
// launch; setmaxnreg makes them 240 for consumers and 24 for the producer, whose addresses spill.
//
// budget: mma s8 f16 32 | registers 255 | spills 0 | loop 690
// budget: mma s8 f16 64 | registers 255 | spills 0 | loop 800
// budget: mma s8 f16 96 | registers 255 | spills 0 | loop 920
// budget: mma s8 f16 128 | registers 255 | spills 10 | loop 1020
// budget: mma s8 f16 192 | registers 255 | spills 0 | loop 550
// budget: mma s8 f16 256 | registers 255 | spills 0 | loop 610
// budget: wgmma bf16 bf16 64 | registers 168 | spills 0 | loop 460
// budget: wgmma bf16 bf16 96 | registers 168 | spills 0 | loop 490
// budget: wgmma bf16 bf16 128 | registers 168 | spills 0 | loop 520
// budget: wgmma bf16 bf16 192 | registers 168 | spills 0 | loop 430
// budget: wgmma bf16 bf16 256 | registers 168 | spills 0 | loop 480
// budget: wgmma f16 f16 64 | registers 168 | spills 0 | loop 460
// budget: wgmma f16 f16 96 | registers 168 | spills 0 | loop 490
// budget: wgmma f16 f16 128 | registers 168 | spills 0 | loop 520
// budget: wgmma f16 f16 192 | registers 168 | spills 0 | loop 430
// budget: wgmma f16 f16 256 | registers 168 | spills 0 | loop 480
// budget: wgmma s8 e4m3 64 | registers 168 | spills 0 | loop 460
// budget: wgmma s8 e4m3 96 | registers 168 | spills 0 | loop 480
// budget: wgmma s8 e4m3 128 | registers 168 | spills 1 | loop 470
// budget: wgmma s8 e4m3 192 | registers 168 | spills 0 | loop 590
// budget: wgmma s8 e4m3 256 | registers 168 | spills 0 | loop 640
#include "cuda/arch/barrier.h"
#include "cuda/arch/wgmma.h"
#include "cuda/launch/launch.cuh"

namespace clary::cuda {

struct Sm90 : WarpOps, ConvertOps, SharedOps, MmaOps, BarrierOps, WgmmaOps {
  static constexpr bool kHasE4m3 = true;
};

const ArchKernels& kernels_sm90() { return arch_kernels<Sm90, KernelsSm90>("sm_90a"); }

}  // namespace clary::cuda
