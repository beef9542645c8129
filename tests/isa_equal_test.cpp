// Every instruction set computes what the scalar set computes, bit for bit: lane order and rounding are part of the
// kernels' specification. Where a native bf16 dot product rounds differently, the bound is stated. The matrix engine
// has kernels of its own but for `exact`; their specification is the emulated engine.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "support/harness.h"
#include "support/random_problem.h"

namespace clary::test {
namespace {

class IsaEqual : public testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(Isas, IsaEqual, testing::ValuesIn(isas()),
                         [](const auto& instance) { return identifier(instance.param); });

// The bf16 dot product instructions flush subnormals and add pairs in an order of their own; sets without one multiply
// in f32.
bool multiplies_bf16(const std::string& isa) { return isa == "avx512bf16" || isa == "i8mm" || isa == "amx"; }

// Whether 16-bit products differ from the reference's. CLARY_AUTO may raise a head to INT8_F16.
bool rounds_differently(const Problem& p, const std::string& isa) {
  if (isa == "scalar") return false;
  if (isa == "amx") return p.precision != CLARY_EXACT;
  if (p.precision == CLARY_BF16) return multiplies_bf16(isa);
  return p.precision == CLARY_INT8_F16 || p.precision == CLARY_AUTO;
}

std::string reference_of(const std::string& isa) { return isa == "amx" ? "amx-emulated" : "scalar"; }

// What the reference has to compute: `bf16` is `exact` where nothing multiplies bf16.
Problem referenced(Problem p, const std::string& isa) {
  if (p.precision == CLARY_BF16 && isa != "scalar" && !multiplies_bf16(isa)) p.precision = CLARY_EXACT;
  return p;
}

// Largest difference, relative to the largest output: the products are exact in f32, so that sums differ by f32
// rounding, and now and then a probability or an output falls on the other side of a rounding to 16 bits.
double relative_difference(const Tensor& a, const Tensor& b) {
  double largest = 0, difference = 0;
  const auto& s = a.shape();
  for (int64_t w = 0; w < s[0]; ++w)
    for (int64_t x = 0; x < s[1]; ++x)
      for (int64_t y = 0; y < s[2]; ++y)
        for (int64_t z = 0; z < s[3]; ++z) {
          largest = std::max(largest, std::abs(b.at(w, x, y, z)));
          difference = std::max(difference, std::abs(a.at(w, x, y, z) - b.at(w, x, y, z)));
        }
  return largest == 0 ? difference : difference / largest;
}

testing::AssertionResult equal_to_reference(const Problem& p, const std::string& isa) {
  if (isa == "amx-emulated" && p.precision != CLARY_EXACT) return testing::AssertionSuccess();
  Tensors expected = make_tensors(p), got = expected;
  if (run_guarded(referenced(p, isa), expected, shared_context(reference_of(isa))) != CLARY_OK ||
      run_guarded(p, got, shared_context(isa)) != CLARY_OK)
    return testing::AssertionFailure() << support::to_string(p) << ": " << clary_last_error();
  if (rounds_differently(p, isa)) {
    const double difference = relative_difference(got.out, expected.out);
    // P, V and a bf16 output are rounded by half a unit of 2^-8 each, or not at all; as two bf16 by one of 2^-16.
    const double most = p.precision == CLARY_BF16X3 ? 0x1p-16 + output_rounding(p) * 2
                        : multiplies_bf16(isa)      ? 0x1p-8
                                                    : 0x1p-7;
    if (difference <= most) return testing::AssertionSuccess();
    return testing::AssertionFailure() << support::to_string(p) << " on " << isa << ": largest relative difference "
                                       << difference;
  }
  if (same_bits(got.out, expected.out) && same_bits(got.lse, expected.lse)) return testing::AssertionSuccess();
  return testing::AssertionFailure() << support::to_string(p) << " on " << isa << ": out differs by "
                                     << relative_difference(got.out, expected.out)
                                     << ", same LSE bits: " << same_bits(got.lse, expected.lse);
}

TEST_P(IsaEqual, DescribedProblems) {
  std::vector<std::string> lines;
  for (const char* shape : {"h2 lq33 lk600 d64", "hq4 hkv2 lq50 lk300 d80 causal", "lq1 lk2100 d128",
                            "lq20 lk270 d33 dv65 softcap5 alibi", "lq20 lk600 d32 mask=bool:0.5 sinks",
                            "lq40 lk520 d24 mask=additive:0.9 window100,50 f16", "lq17 lk256 d256 bf16"})
    for (const char* data : {"normal", "outliers", "peaked"}) lines.push_back(std::string(shape) + " data=" + data);
  for (const std::string& line : lines)
    for (const clary_precision precision :
         {CLARY_EXACT, CLARY_BF16, CLARY_INT8_F16, CLARY_INT8, CLARY_INT4, CLARY_BF16X3}) {
      Problem p = support::parse_problem(line);
      p.precision = precision;
      EXPECT_TRUE(equal_to_reference(p, GetParam()));
    }
}

TEST_P(IsaEqual, RandomProblems) {
  RandomProblems problems(environment_or("CLARY_TEST_SEED", 4711));
  int failures = 0;
  for (int n = 0; n < 400 && failures < 20; ++n) {
    const testing::AssertionResult result = equal_to_reference(problems.next(), GetParam());
    EXPECT_TRUE(result);
    failures += !result;
  }
}

}  // namespace
}  // namespace clary::test
