// The variants of sm_90, compiled: for clary_gpu_check alone.
#include "cuda/check/variants.h"

#include "cuda/arch/barrier.h"
#include "cuda/arch/wgmma.h"
#include "cuda/attention/variants.h"
#include "cuda/launch/launch.cuh"

namespace clary::check {
namespace {

// A machine of its own: kernels of two files must not be the same symbols.
struct Sm90Variants : cuda::WarpOps, cuda::ConvertOps, cuda::SharedOps, cuda::MmaOps, cuda::BarrierOps, cuda::WgmmaOps {
  static constexpr bool kHasE4m3 = true;
};
constexpr auto kKnobs = cuda::knobs_of(cuda::VariantsSm90());

}  // namespace

const cuda::ArchKernels& variant_kernels() {
  return cuda::arch_kernels<Sm90Variants, cuda::VariantsSm90>("variants of sm_90a");
}
std::span<const cuda::WgmmaKnobs> variant_knobs() { return kKnobs; }

}  // namespace clary::check
