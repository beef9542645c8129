// The kernels of one architecture as the backend sees them: plain pointers, so that only .cu files know templates.
#pragma once

#include <span>

#include "cuda/host/plan.h"

namespace clary::cuda {

struct ArchKernels {
  const char* name;
  std::span<const Instance> instances;
  // Enqueue the two halves of a plan; a cudaError_t each.
  int (*quantise)(const CudaPlan& plan, void* stream);
  int (*attend)(const CudaPlan& plan, void* stream, int processors);
};

// By compute capability (80 = 8.0); nullptr: no kernels for it.
const ArchKernels* kernels_for(int capability);

// One launch file each.
const ArchKernels& kernels_sm80();
const ArchKernels& kernels_sm89();
const ArchKernels& kernels_sm90();
const ArchKernels& kernels_sm100();
const ArchKernels& kernels_sm120();

}  // namespace clary::cuda
