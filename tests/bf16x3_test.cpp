// f32 as the sum of two bf16 on the matrix engine: its promise, what bounds its range, and what it is elsewhere.
#include <gtest/gtest.h>

#include <string>

#include "support/harness.h"

namespace clary::test {
namespace {

class Bf16x3 : public testing::TestWithParam<std::string> {
 protected:
  const std::string& isa() const { return GetParam(); }

  double relative_error(const Problem& p, Tensors& tensors) const {
    EXPECT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK) << clary_last_error();
    const auto rows = rows_of(p, 96);
    return output_errors(p, tensors, rows, exact_attention(p, tensors, rows)).relative_l2;
  }
};

INSTANTIATE_TEST_SUITE_P(Isas, Bf16x3, testing::ValuesIn(isas()),
                         [](const auto& instance) { return identifier(instance.param); });

TEST_P(Bf16x3, KeepsItsPromiseForEveryType) {
  for (const char* shape :
       {"h1 lq96 lk1024 d64", "h1 lq96 lk4096 d64", "h1 lq96 lk1024 d128", "h1 lq96 lk1024 d80 causal"})
    for (const char* type : {"f32", "f16", "bf16"}) {
      const Problem p = support::parse_problem(std::string(shape) + " bf16x3 out=f32 " + type);
      Tensors tensors = make_tensors(p);
      // All halves of bf16 tensors are there, and only P is rounded.
      const double error = relative_error(p, tensors), gate = p.dtype == DType::bf16 ? 4e-6 : 1e-5;
      EXPECT_LE(error, is_amx(isa()) ? gate : 2e-6) << support::to_string(p);
      RecordProperty(std::string("error ") + shape + " " + type, std::to_string(error * 1e6) + "e-6");
    }
}

// Values whose sums with P up to 2^30 would leave f32.
TEST_P(Bf16x3, ValuesMayBeHuge) {
  for (const char* line : {"h1 lq40 lk300 d32 bf16x3", "h1 lq40 lk40 d32 bf16x3 causal bf16 out=f32"}) {
    const Problem p = support::parse_problem(line);
    Tensors tensors = make_tensors(p);
    for (int64_t d = 0; d < p.dim_v; ++d) tensors.v.set(0, 0, 29, d, d % 2 == 0 ? 3.39e38 : -1e30);
    EXPECT_LE(relative_error(p, tensors), is_amx(isa()) ? 1e-5 : 2e-6);
    const auto rows = rows_of(p);
    EXPECT_TRUE(agrees(p, tensors, rows, exact_attention(p, tensors, rows), isa()));
  }
}

// Maxima that grow by more than the lazy reference bears, block after block.
TEST_P(Bf16x3, MaximaMayGrow) {
  const Problem p = support::parse_problem("h1 lq40 lk1100 d32 bf16x3 scale1");
  Tensors tensors = make_tensors(p);
  for (int64_t j = 0; j < p.len_k; ++j)
    for (int64_t d = 0; d < p.dim_qk; ++d)
      tensors.k.set(0, 0, j, d, 0.05 * tensors.k.at(0, 0, j, d) + (d == 0 ? static_cast<double>(j / 100) * 25 : 0));
  for (int64_t i = 0; i < p.len_q; ++i) tensors.q.set(0, 0, i, 0, i % 2 == 0 ? 1 : -1);
  ASSERT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK) << clary_last_error();
  const auto rows = rows_of(p);
  // Logits of 250 are kept to 3 * 2^-16 of them at worst.
  const Exact exact = exact_attention(p, tensors, rows);
  EXPECT_LE(output_errors(p, tensors, rows, exact).relative_l2, 2e-4);
  EXPECT_LE(lse_errors(p, tensors, rows, exact).max_abs, 3e-3);
}

TEST_P(Bf16x3, TellsWhatItIs) {
  const Problem p = support::parse_problem("h1 lq40 lk300 d32 bf16x3");
  Tensors tensors = make_tensors(p);
  const PlanPointer plan = make_plan(p, tensors, shared_context(isa()));
  std::string text(4096, '\0');
  text.resize(clary_plan_describe(plan.get(), text.data(), text.size()));
  const std::string kernel =
      is_amx(isa()) ? "bf16x3 on " + isa() + " (as asked)" : "exact on " + isa() + " (bf16x3 as f32";
  EXPECT_NE(text.find(kernel), std::string::npos) << text;
}

TEST_P(Bf16x3, IsExactWithoutAMatrixEngine) {
  if (is_amx(isa())) GTEST_SKIP();
  Problem p = support::parse_problem("hq4 hkv2 lq50 lk300 d80 causal bf16x3");
  Tensors got = make_tensors(p), expected = got;
  ASSERT_EQ(run_guarded(p, got, shared_context(isa())), CLARY_OK) << clary_last_error();
  p.precision = CLARY_EXACT;
  ASSERT_EQ(run_guarded(p, expected, shared_context(isa())), CLARY_OK) << clary_last_error();
  EXPECT_TRUE(same_bits(got.out, expected.out));
  EXPECT_TRUE(same_bits(got.lse, expected.lse));
}

}  // namespace
}  // namespace clary::test
