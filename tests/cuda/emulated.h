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

// The kernels of an architecture: "sm80", "sm89", "sm90", "sm100", "sm120".
const std::vector<EmulatedKernel>& emulated_kernels(const std::string& arch);

// The two halves of a plan whose pointers are to host memory.
void emulate_quantiser(const cuda::CudaPlan& plan);
void emulate_attention(const std::string& arch, const cuda::CudaPlan& plan);

// What a test of the tests does to a plan between the quantiser and the attention kernel. True: it has run a kernel of
// its own instead.
using Tamper = std::function<bool(cuda::CudaPlan&)>;

// Runs a described problem as src/cuda/launch would, with a workspace that is full of NaN and ends at an inaccessible
// page. Returns what clary_attention would.
clary_status run_emulated(const std::string& arch, const Problem& problem, Tensors& tensors,
                          const Tamper& tamper = nullptr);

// Compares every row of a result with float64.
testing::AssertionResult emulated_agrees(const std::string& arch, const Problem& problem, Tensors& tensors);
// Makes the tensors, runs them, and compares.
testing::AssertionResult emulated_runs_right(const std::string& arch, const Problem& problem,
                                             const Tamper& tamper = nullptr);

}  // namespace clary::test
