// NaN, infinities and extreme finite numbers end up in exactly the rows where exact attention puts them, for every
// precision and instruction set; what is hidden poisons nothing.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "support/harness.h"

namespace clary::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
constexpr clary_precision kPrecisions[] = {CLARY_EXACT, CLARY_BF16, CLARY_INT8_F16, CLARY_INT8,
                                           CLARY_INT4,  CLARY_AUTO, CLARY_BF16X3};

class NonFinite : public testing::TestWithParam<std::tuple<std::string, clary_precision>> {
 protected:
  const std::string& isa() const { return std::get<0>(GetParam()); }
  Problem problem(const std::string& line) const {
    Problem p = support::parse_problem(line);
    p.precision = std::get<1>(GetParam());
    return p;
  }
  // Plants into the tensors, runs, and compares every row with float64 attention on the same tensors.
  template <typename Plant>
  void expect_like_exact(const std::string& line, Plant plant) const {
    const Problem p = problem(line);
    Tensors tensors = make_tensors(p);
    plant(tensors);
    ASSERT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK) << clary_last_error();
    const auto rows = rows_of(p);
    EXPECT_TRUE(agrees(p, tensors, rows, exact_attention(p, tensors, rows), isa()));
  }
};

INSTANTIATE_TEST_SUITE_P(Isas, NonFinite, testing::Combine(testing::ValuesIn(isas()), testing::ValuesIn(kPrecisions)),
                         [](const auto& instance) {
                           return identifier(std::get<0>(instance.param) + "_" +
                                             support::name_of(std::get<1>(instance.param)));
                         });

TEST_P(NonFinite, OneQuery) {
  for (const double value : {kNan, kInf, -kInf})
    expect_like_exact("h2 lq40 lk300 d32", [&](Tensors& t) { t.q.set(0, 1, 17, 5, value); });
}

TEST_P(NonFinite, OneKey) {
  for (const double value : {kNan, kInf, -kInf}) {
    const auto plant = [&](Tensors& t) { t.k.set(0, 0, 29, 5, value); };
    expect_like_exact("hq4 hkv2 lq40 lk300 d32", plant);
    expect_like_exact("hq4 hkv2 lq40 lk40 d32 causal", plant);
    expect_like_exact("hq4 hkv2 lq40 lk40 d32 causal f16", plant);
    expect_like_exact("h1 lq40 lk40 d32 causal window5,0 bf16", plant);
  }
}

TEST_P(NonFinite, OneValue) {
  for (const double value : {kNan, kInf, -kInf}) {
    const auto plant = [&](Tensors& t) { t.v.set(0, 0, 29, 5, value); };
    expect_like_exact("hq4 hkv2 lq40 lk300 d32", plant);
    expect_like_exact("hq4 hkv2 lq40 lk40 d32 causal", plant);
    expect_like_exact("h1 lq40 lk300 d32 mask=bool:0.5", plant);
    expect_like_exact("h1 lq40 lk300 d32 mask=additive:0.5", plant);
  }
}

TEST_P(NonFinite, InfinitiesOfBothSignsInOneChannel) {
  expect_like_exact("h1 lq60 lk60 d32 causal", [](Tensors& t) {
    t.v.set(0, 0, 20, 3, kInf);
    t.v.set(0, 0, 40, 3, -kInf);
  });
}

// Few rows and many keys are cut into parts: a part whose scores are all NaN or infinite must survive the merge.
TEST_P(NonFinite, SplitKeys) {
  for (const double value : {kNan, kInf, -kInf}) {
    expect_like_exact("h1 lq1 lk9000 d16", [&](Tensors& t) { t.v.set(0, 0, 8000, 3, value); });
    expect_like_exact("h1 lq1 lk9000 d16", [&](Tensors& t) { t.k.set(0, 0, 100, 3, value); });
  }
}

// Finite, but so large that one of them in a mean or a scale would leave nothing of its neighbours.
TEST_P(NonFinite, HugeHiddenKeysCostNoAccuracy) {
  double hidden = 0;
  const auto plant = [&](Tensors& t) {
    for (int64_t j = 0; j < 300; ++j)
      for (int64_t c = 0; c < 32; ++c)
        if (t.mask.at(0, 0, 0, j) == hidden) t.k.set(0, 0, j, c, 1e4), t.v.set(0, 0, j, c, -1e4);
  };
  expect_like_exact("hq2 hkv1 lq80 lk300 d32 mask=key_padding:0.6", plant);
  expect_like_exact("hq2 hkv1 lq80 lk300 d32 mask=bool:0.5:hq bf16", plant);
  hidden = -kInf;
  expect_like_exact("hq2 hkv1 lq80 lk300 d32 mask=additive:0.5:hq", plant);
}

TEST_P(NonFinite, HiddenPlacesPoisonNothing) {
  const auto poison_last_keys = [](Tensors& t) {
    for (int64_t j = 200; j < 300; ++j) {
      t.k.set(0, 0, j, j % 32, j % 3 == 0 ? kNan : kInf);
      t.v.set(0, 0, j, j % 32, j % 3 == 1 ? kNan : -kInf);
    }
  };
  expect_like_exact("h1 lq40 lk300 d32 causal=100", poison_last_keys);
  expect_like_exact("h1 lq40 lk300 d32 causal=100 f16", poison_last_keys);
  expect_like_exact("h1 lq40 lk300 d32 mask=key_padding:0.6", poison_last_keys);
  expect_like_exact("h1 lq40 lk300 d32 window-1,20 causal=top_left bf16", poison_last_keys);
  expect_like_exact("lens_q=20,20 lens_k=100,200 h1 d32 causal=-5", poison_last_keys);
  expect_like_exact("h1 lq40 lk300 d32 mask=additive:1:q", [&](Tensors& t) {
    poison_last_keys(t);
    for (int64_t j = 200; j < 300; ++j) t.mask.set(0, 0, 0, j, -kInf);
  });
}

// A row that sees nothing is 0 even when its query is NaN.
TEST_P(NonFinite, NanQueriesWithoutKeys) {
  expect_like_exact("h1 lq40 lk40 d32 causal=-10", [](Tensors& t) {
    for (int64_t i = 0; i < 10; ++i) t.q.set(0, 0, i, 3, kNan);
  });
}

TEST_P(NonFinite, Masks) {
  for (const double value : {kNan, kInf})
    expect_like_exact("h2 lq40 lk300 d32 mask=additive:0.8:h", [&](Tensors& t) { t.mask.set(0, 0, 7, 33, value); });
}

TEST_P(NonFinite, SoftcapMakesInfinitiesFinite) {
  for (const double value : {kInf, -kInf, kNan})
    expect_like_exact("h1 lq40 lk300 d32 softcap5", [&](Tensors& t) { t.k.set(0, 0, 29, 5, value); });
}

TEST_P(NonFinite, HugeFiniteMasksStayVisible) {
  const Problem p = problem("h1 lq40 lk300 d32 mask=additive:1");
  Tensors tensors = make_tensors(p);
  const double lowest = std::numeric_limits<float>::lowest();
  for (int64_t j = 0; j < 300; ++j) {
    tensors.mask.set(0, 0, 3, j, lowest);                    // all keys alike: a uniform row
    tensors.mask.set(0, 0, 4, j, j % 2 ? lowest : 0);        // half the keys weigh nothing
    tensors.mask.set(0, 0, 5, j, j < 299 ? -kInf : lowest);  // one visible key takes it all
  }
  ASSERT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK) << clary_last_error();
  const auto rows = rows_of(p);
  const Exact exact = exact_attention(p, tensors, rows);
  // Judged without the LSE's magnitude, which would widen the bound of agrees() by 1e38.
  const Errors errors = output_errors(p, tensors, rows, exact);
  EXPECT_EQ(errors.mismatched_nonfinite, 0);
  EXPECT_LE(errors.difference_norm, 2 * normal_gate(p, isa()) * errors.spread_norm);
  EXPECT_EQ(lse_errors(p, tensors, rows, exact).mismatched_nonfinite, 0);
  for (int64_t d = 0; d < 32; ++d) EXPECT_NEAR(tensors.out.at(0, 0, 5, d), tensors.v.at(0, 0, 299, d), 0.02);
}

TEST_P(NonFinite, AllLogitsFarBelowZero) {
  // Keys near a common vector: all logits are about -1e5 and differ by a few units.
  const Problem p = problem("h1 lq20 lk300 d32");
  Tensors tensors = make_tensors(p);
  for (int64_t j = 0; j < 300; ++j)
    for (int64_t d = 0; d < 32; ++d) tensors.k.set(0, 0, j, d, -100 + 0.002 * tensors.k.at(0, 0, j, d));
  for (int64_t i = 0; i < 20; ++i)
    for (int64_t d = 0; d < 32; ++d) tensors.q.set(0, 0, i, d, 177 + tensors.q.at(0, 0, i, d));
  ASSERT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK) << clary_last_error();
  const auto rows = rows_of(p);
  const Exact exact = exact_attention(p, tensors, rows);
  const Errors errors = output_errors(p, tensors, rows, exact);
  EXPECT_EQ(errors.mismatched_nonfinite, 0);
  EXPECT_EQ(lse_errors(p, tensors, rows, exact).mismatched_nonfinite, 0);
  // f32 keeps logits of 1e5 to 2^-7; bf16 keys lose all that tells them apart; smoothed INT8 loses the least.
  const bool is_exact = p.precision == CLARY_EXACT || p.precision == CLARY_BF16X3;
  const double gate = is_exact ? 0.02 : p.precision == CLARY_INT8 ? 0.05 : 1.5;
  EXPECT_LE(errors.difference_norm, gate * errors.spread_norm);
}

TEST_P(NonFinite, LargestAndSmallestF16) {
  const auto with_signs = [](Tensor& tensor, double magnitude) {
    const auto& s = tensor.shape();
    for (int64_t h = 0; h < s[1]; ++h)
      for (int64_t t = 0; t < s[2]; ++t)
        for (int64_t d = 0; d < s[3]; ++d) tensor.set(0, h, t, d, std::copysign(magnitude, tensor.at(0, h, t, d)));
  };
  for (const char* line : {"h2 lq40 lk300 d32 f16 scale4e-11", "h2 lq40 lk300 d32 f16 out=f32 scale4e-11"})
    expect_like_exact(line,
                      [&](Tensors& t) { with_signs(t.q, 65504), with_signs(t.k, 65504), with_signs(t.v, 65504); });
  expect_like_exact("h2 lq40 lk300 d32 f16 out=f32 scale1e14",
                    [&](Tensors& t) { with_signs(t.q, 0x1p-24), with_signs(t.k, 0x1p-24), with_signs(t.v, 0x1p-24); });
}

// An average of finite values is finite, even where rounding a value to bf16 passes the largest f16.
TEST_P(NonFinite, AnAverageOfTheLargestF16IsFinite) {
  const Problem p = problem("h1 lq20 lk300 d16 f16");
  Tensors tensors = make_tensors(p);
  for (int64_t j = 0; j < 300; ++j)
    for (int64_t d = 0; d < 16; ++d) tensors.v.set(0, 0, j, d, d % 2 ? 65504 : -65504);
  ASSERT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK) << clary_last_error();
  for (int64_t i = 0; i < 20; ++i)
    for (int64_t d = 0; d < 16; ++d) ASSERT_NEAR(tensors.out.at(0, 0, i, d), d % 2 ? 65504 : -65504, 256);
}

}  // namespace
}  // namespace clary::test
