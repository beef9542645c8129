// The CUDA backend as the C interface sees it. Built with nvcc: launch/backend.cpp; without: absent.cpp.
#pragma once

#include "problem/problem.h"

namespace clary::cuda {

// Enqueues the call on problem.device.stream.
clary_status attention(const Problem& problem, const Tensors& tensors);
clary_status workspace_bytes(const Problem& problem, size_t& bytes);

}  // namespace clary::cuda
