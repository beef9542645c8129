// From a checked problem to kernel parameters: which instance, what lies where in the workspace, how large the grids
// are. Plain C++, no CUDA: the tests run it with emulated kernels.
#pragma once

#include <span>

#include "cuda/attention/instances.h"
#include "cuda/quantise/params.h"
#include "problem/problem.h"

namespace clary::cuda {

struct GridSize {
  int64_t x = 1, y = 1, z = 1;
};

struct CudaPlan {
  const Instance* instance = nullptr;
  QuantiseParams quantise{};
  AttentionParams attention{};
  ClassParams classes{};
  GridSize statistics, pack, survey;
  int64_t items = 0;  // of the attention kernel
  bool has_statistics = false, has_classes = false;
  int pack_shared_bytes = 0;
  size_t workspace_bytes = 0;
};

// What a call's workspace must be, given what its plan needs.
clary_status check_workspace(const Device& device, size_t needed);

// Nothing to compute and nothing to write.
bool is_empty(const Problem& problem);

// workspace nullptr: only measures. What no instance serves is CLARY_UNSUPPORTED with the reason.
clary_status make_cuda_plan(const Problem& problem, const Tensors& tensors, std::span<const Instance> instances,
                            const char* device, void* workspace, CudaPlan& plan);

}  // namespace clary::cuda
