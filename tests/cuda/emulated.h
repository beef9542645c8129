// Whole attention calls on emulated kernels: the plan of src/cuda/host, the quantiser, the attention kernel.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cuda/emulator/block.h"
#include "cuda/host/plan.h"
#include "support/harness.h"

namespace clary::test {

// One attention kernel, emulated.
struct EmulatedKernel {
  cuda::Instance instance;
  std::function<void(const cuda::AttentionParams&, int64_t items)> run;
};

// The kernels of an architecture: "sm80", "sm89", "sm90", "sm120".
const std::vector<EmulatedKernel>& emulated_kernels(const std::string& arch);

// Runs a described problem as src/cuda/launch would, with a workspace that is full of NaN and ends at an inaccessible
// page. Returns what clary_attention would.
clary_status run_emulated(const std::string& arch, const Problem& problem, Tensors& tensors);

// Runs it and compares every row with float64.
testing::AssertionResult emulated_runs_right(const std::string& arch, const Problem& problem);

}  // namespace clary::test
