// Whole kernels against float64, emulated.
#include <gtest/gtest.h>

#include <string>

#include "cuda/emulated.h"
#include "support/random_problem.h"

namespace clary::test {
namespace {

constexpr uint64_t kShards = 4;
// The emulator runs a few problems per second; the CPU tests run hundreds.
constexpr uint64_t kShare = 25;

class CudaMixed : public testing::TestWithParam<std::tuple<std::string, uint64_t>> {};

std::string name_of_mixed(const testing::TestParamInfo<std::tuple<std::string, uint64_t>>& info) {
  return std::get<0>(info.param) + "_" + std::to_string(std::get<1>(info.param));
}
INSTANTIATE_TEST_SUITE_P(Architectures, CudaMixed,
                         testing::Combine(testing::Values("sm80", "sm89", "sm90", "sm120"),
                                          testing::Range(uint64_t{0}, kShards)),
                         name_of_mixed);

// All features at random.
TEST_P(CudaMixed, ProblemsAgreeWithFloat64) {
  const auto& [arch, shard] = GetParam();
  const uint64_t seed = environment_or("CLARY_TEST_SEED", 20261);
  const uint64_t count = environment_or("CLARY_TEST_PROBLEMS", 4000) / (kShare * kShards) + 1;
  RandomProblems problems(seed * kShards + shard + 1000 * static_cast<uint64_t>(arch.size() + arch.back() * 8));
  for (uint64_t n = 0; n < count; ++n) {
    Problem p = problems.next();
    if (p.dtype == DType::f32 && p.precision == CLARY_EXACT) p.dtype = DType::bf16;
    EXPECT_TRUE(emulated_runs_right(arch, p));
  }
}

}  // namespace
}  // namespace clary::test
