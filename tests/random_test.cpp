// Random problems of all features against float64, each once per instruction set of this machine.
//
// CLARY_TEST_SEED chooses other problems, CLARY_TEST_PROBLEMS how many (over all shards). A failure prints the problem
// as `clary check` takes it.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "support/harness.h"
#include "support/random_problem.h"

namespace clary::test {
namespace {

constexpr uint64_t kShards = 8;  // so that ctest can run them side by side

class Random : public testing::TestWithParam<uint64_t> {};

INSTANTIATE_TEST_SUITE_P(Shards, Random, testing::Range(uint64_t{0}, kShards));

TEST_P(Random, ProblemsAgreeWithFloat64) {
  const uint64_t seed = environment_or("CLARY_TEST_SEED", 20260), total = environment_or("CLARY_TEST_PROBLEMS", 4000);
  const uint64_t count = (total + kShards - 1) / kShards;
  std::printf("seed %llu, shard %llu of %llu: %llu problems\n", static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(GetParam()), static_cast<unsigned long long>(kShards),
              static_cast<unsigned long long>(count));
  RandomProblems problems(seed * kShards + GetParam());
  int failures = 0;
  for (uint64_t n = 0; n < count && failures < 20; ++n) {
    const Problem p = problems.next();
    ASSERT_EQ(support::parse_problem(support::to_string(p)), p);
    Tensors tensors = make_tensors(p);
    const auto rows = rows_of(p);
    const Exact exact = exact_attention(p, tensors, rows);
    for (const std::string& isa : isas()) {
      const clary_status status =
          run_guarded(p, tensors, shared_context(isa), problems.one_in(2) ? Side::end : Side::begin);
      EXPECT_EQ(status, CLARY_OK) << support::to_string(p) << " on " << isa << ": " << clary_last_error();
      const testing::AssertionResult result = agrees(p, tensors, rows, exact, isa);
      EXPECT_TRUE(result);
      failures += !result || status != CLARY_OK;
    }
  }
}

}  // namespace
}  // namespace clary::test
