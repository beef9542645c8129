// Kernels that might be faster than those that ship (attention/variants.h), for bench.cpp.
#pragma once

#include <span>

#include "cuda/attention/variants.h"
#include "cuda/launch/kernels.h"

namespace clary::check {

const cuda::ArchKernels& variant_kernels();
std::span<const cuda::WgmmaKnobs> variant_knobs();  // of variant_kernels().instances, in their order

}  // namespace clary::check
