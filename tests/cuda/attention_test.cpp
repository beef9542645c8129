// Whole kernels against float64, emulated.
#include <gtest/gtest.h>

#include <string>

#include "cuda/emulated.h"

namespace clary::test {
namespace {

TEST(CudaAttention, First) {
  for (const char* arch : {"sm80", "sm89"})
    for (const char* line :
         {"b1 hq1 hkv1 lq64 lk64 d64 f16 exact", "b1 hq1 hkv1 lq64 lk64 d64 f16 int8",
          "b1 hq2 hkv1 lq130 lk200 d64 bf16 exact causal", "b1 hq2 hkv1 lq130 lk200 d64 bf16 int8 causal",
          "b1 hq2 hkv1 lq130 lk200 d128 bf16 int4 causal", "b1 hq2 hkv1 lq130 lk200 d256 bf16 int4 causal",
          "b1 hq2 hkv1 lq130 lk200 d256 bf16 int8 causal", "b1 hq2 hkv1 lq130 lk200 d256 bf16 exact causal"})
      EXPECT_TRUE(emulated_runs_right(arch, support::parse_problem(line)));
}

}  // namespace
}  // namespace clary::test
