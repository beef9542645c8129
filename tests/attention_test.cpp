// Every feature of attention alone, for every precision and instruction set, against float64.
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "support/harness.h"

namespace clary::test {
namespace {

constexpr clary_precision kPrecisions[] = {CLARY_EXACT, CLARY_BF16, CLARY_INT8_F16, CLARY_INT8,
                                           CLARY_INT4,  CLARY_AUTO, CLARY_BF16X3};

class Attention : public testing::TestWithParam<std::tuple<std::string, clary_precision>> {
 protected:
  const std::string& isa() const { return std::get<0>(GetParam()); }
  clary_precision precision() const { return std::get<1>(GetParam()); }

  Problem problem(const std::string& line) const {
    Problem p = support::parse_problem(line);
    p.precision = precision();
    return p;
  }
  // Runs each line, with the tensors at an inaccessible page at their end and then at their beginning.
  void expect_right(const std::vector<std::string>& lines) const {
    for (const std::string& line : lines)
      for (const Side side : {Side::end, Side::begin}) EXPECT_TRUE(runs_right(problem(line), isa(), side));
  }
};

INSTANTIATE_TEST_SUITE_P(Isas, Attention, testing::Combine(testing::ValuesIn(isas()), testing::ValuesIn(kPrecisions)),
                         [](const auto& instance) {
                           return identifier(std::get<0>(instance.param) + "_" +
                                             support::name_of(std::get<1>(instance.param)));
                         });

// The figures that the project promises, on enough keys for them to mean something.
TEST_P(Attention, RelativeErrorOnNormalDataIsWithinItsGate) {
  for (const char* line : {"h2 lq96 lk2048 d64", "h1 lq96 lk1024 d128 seed2", "h1 lq1024 lk1024 d64 causal seed3"}) {
    const Problem p = problem(line);
    Tensors tensors = make_tensors(p);
    ASSERT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK) << clary_last_error();
    const auto rows = rows_of(p, 192);
    const Exact exact = exact_attention(p, tensors, rows);
    const Errors errors = output_errors(p, tensors, rows, exact);
    EXPECT_LE(errors.relative_l2, normal_gate(p, isa())) << support::to_string(p);
    EXPECT_EQ(errors.mismatched_nonfinite, 0);
    // The score errors that make up the gate average out over the keys of a row.
    EXPECT_LE(lse_errors(p, tensors, rows, exact).max_abs, normal_gate(p, isa())) << support::to_string(p);
  }
}

TEST_P(Attention, StructuredDataQuantisesWell) {
  for (const char* line : {"h2 lq64 lk2048 d64 data=outliers", "h1 lq64 lk1024 d128 data=outliers seed2"}) {
    const Problem p = problem(line);
    Tensors tensors = make_tensors(p);
    ASSERT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK) << clary_last_error();
    const auto rows = rows_of(p);
    const Errors errors = output_errors(p, tensors, rows, exact_attention(p, tensors, rows));
    EXPECT_LE(errors.relative_l2, precision() == CLARY_INT4 ? 0.01 : 0.001) << support::to_string(p);
    EXPECT_GE(errors.cosine, 0.9999);
  }
}

TEST_P(Attention, PeakedScores) { expect_right({"h2 lq33 lk300 d64 data=peaked"}); }

TEST_P(Attention, Causal) {
  expect_right({"h2 lq70 lk70 d32 causal", "lq20 lk300 d32 causal", "lq300 lk20 d32 causal",
                "lq70 lk40 d32 causal=top_left", "lq40 lk300 d32 causal=top_left", "lq40 lk290 d32 causal=100",
                "lq40 lk40 d32 causal=0"});
}

TEST_P(Attention, NegativeOffsetsLeaveRowsWithoutKeys) {
  expect_right({"lq40 lk40 d32 causal=-7", "lq40 lk40 d32 causal=-100", "lq290 lk20 d32 causal bf16"});
}

TEST_P(Attention, Windows) {
  expect_right({"lq70 lk300 d32 window10,0", "lq70 lk300 d32 window0,10", "lq70 lk300 d32 window30,20 causal",
                "lq70 lk70 d32 window-1,5 causal=top_left", "lq70 lk70 d32 window5,-1", "lq40 lk600 d32 window0,0",
                "lq40 lk40 d32 window3,3 causal=-20", "lq600 lk40 d16 window17,300"});
}

TEST_P(Attention, Softcap) { expect_right({"lq33 lk270 d32 softcap2", "lq33 lk270 d32 softcap30 data=peaked"}); }
TEST_P(Attention, Alibi) { expect_right({"hq8 hkv8 lq33 lk270 d32 alibi", "h3 lq33 lk33 d32 alibi causal"}); }
TEST_P(Attention, Sinks) {
  expect_right({"h4 lq33 lk270 d32 sinks", "h2 lq33 lk3 d32 sinks", "lq9 lk9 d8 sinks causal=-3"});
}

TEST_P(Attention, BooleanMasksBroadcastOverAnyDimension) {
  for (const char* pattern : {"", ":b", ":h", ":q", ":k", ":bh", ":bq", ":hq", ":hk", ":qk", ":bhq", ":bhk", ":bhqk"})
    expect_right({std::string("b2 h2 lq20 lk270 d16 mask=bool:0.4") + pattern});
}

TEST_P(Attention, AdditiveMasksBroadcastOverAnyDimension) {
  for (const char* pattern : {"", ":b", ":h", ":q", ":k", ":bh", ":bq", ":hq", ":hk", ":qk", ":bhq", ":bhk", ":bhqk"})
    expect_right({std::string("b2 h2 lq20 lk270 d16 mask=additive:0.6") + pattern});
}

TEST_P(Attention, MaskDensities) {
  expect_right({"lq40 lk600 d16 mask=bool:0", "lq40 lk600 d16 mask=bool:1", "lq40 lk600 d16 mask=bool:0.01",
                "lq40 lk600 d16 mask=additive:1", "lq40 lk600 d16 mask=additive:0",
                "lq20 lk300 d16 mask=additive:0.5 mask_dtype=input bf16",
                "lq20 lk300 d16 mask=additive:0.5 mask_dtype=input f16"});
}

TEST_P(Attention, KeyPaddingAndBlockMasks) {
  expect_right({"b3 h2 lq20 lk600 d16 mask=key_padding:0.6", "h2 lq300 lk1100 d16 mask=block:0.25"});
}

TEST_P(Attention, GroupedHeads) {
  expect_right({"b2 hq8 hkv2 lq20 lk70 d32", "hq7 hkv1 lq1 lk300 d32", "hq6 hkv3 lq17 lk300 d32 causal",
                "hq12 hkv4 lq3 lk9 d64 causal"});
}

// 32 rows of one query, which all end at the same key: at the edges of vectors, halves of panels, panels and blocks.
TEST_P(Attention, RowsThatEndTogether) {
  for (const int keys : {1, 15, 16, 17, 32, 33, 64, 65, 96, 192, 193, 224, 225, 256, 257, 288, 448, 480, 511, 512, 544})
    expect_right({"hq32 hkv1 lq1 lk600 d32 causal=" + std::to_string(keys - 1)});
}

TEST_P(Attention, HeadDims) {
  for (const int dim : {1, 2, 3, 7, 8, 16, 31, 32, 33, 40, 64, 72, 80, 96, 100, 128, 192, 256, 512, 1024})
    expect_right({"lq19 lk70 d" + std::to_string(dim)});
}

TEST_P(Attention, ValueDimsDifferFromKeyDims) {
  expect_right(
      {"lq19 lk70 d64 dv1", "lq19 lk70 d1 dv64", "lq19 lk70 d192 dv128", "lq19 lk300 d40 dv33", "lq19 lk70 d33 dv200"});
}

// From 65 channels on AMX multiplies P V of `int8` in bytes.
TEST_P(Attention, EveryRuleWithManyValueChannels) {
  expect_right({"h2 lq70 lk600 d32 dv96 causal", "lq70 lk1100 d32 dv80 window100,50", "lq300 lk20 d16 dv65 causal",
                "lq40 lk40 d32 dv96 causal=-7", "lq33 lk600 d32 dv128 softcap5 alibi", "lq33 lk600 d32 dv96 sinks bf16",
                "b2 h2 lq20 lk600 d16 dv96 mask=bool:0.4", "lq40 lk600 d16 dv100 mask=additive:0.9:bh",
                "b3 h2 lq70 lk1100 d16 dv160 mask=key_padding:0.6", "h2 lq300 lk1100 d16 dv72 mask=block:0.25",
                "hq6 hkv3 lq17 lk300 d32 dv288 causal", "h2 lens_q=70,0,17 lens_k=300,7,0 d16 dv96 bshd f16",
                "lq33 lk600 d64 dv96 data=peaked", "lq20 lk270 d32 dv96 data=constant", "lq40 lk300 d32 dv96 scale30"});
}

// Rows that first see a block of keys far below all others: the reference has to move by a billion octaves.
TEST_P(Attention, FiniteMaskValuesAreForgotten) {
  for (const int dim : {32, 96}) {
    const Problem p = problem("lq40 lk600 d" + std::to_string(dim) + " mask=additive:1");
    Tensors tensors = make_tensors(p);
    for (const double low : {-1e4, -1e9, -3e38}) {
      for (int64_t i = 0; i < p.len_q; ++i)
        for (int64_t j = 0; j < p.len_k; ++j) tensors.mask.set(0, 0, i, j, j < 256 ? low : 0);
      ASSERT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK) << clary_last_error();
      const auto rows = rows_of(p);
      EXPECT_TRUE(agrees(p, tensors, rows, exact_attention(p, tensors, rows), isa())) << low;
    }
  }
}

TEST_P(Attention, Layouts) {
  expect_right({"b2 hq4 hkv2 lq19 lk70 d32 bshd", "b2 hq4 hkv2 lq19 lk70 d33 bshd causal f16"});
}

TEST_P(Attention, Lengths) {
  expect_right({"lq1 lk1 d32", "lq5 lk1 d32", "lq1 lk2 d32", "lq1 lk300 d32", "lq1 lk5000 d16", "lq15 lk255 d16",
                "lq16 lk256 d16", "lq17 lk257 d16", "lq47 lk511 d16", "lq48 lk512 d16", "lq65 lk513 d16"});
}

TEST_P(Attention, EmptyInputs) {
  expect_right({"b0 h2 lq9 lk9 d16", "h2 lq0 lk9 d16", "h2 lq9 lk0 d16", "h2 lq0 lk0 d16", "h2 lq9 lk0 d16 sinks",
                "b2 h2 lq3 lk0 d16 causal f16"});
}

TEST_P(Attention, InputAndOutputTypes) {
  expect_right(
      {"lq20 lk270 d32 f16", "lq20 lk270 d32 bf16", "lq20 lk270 d32 f16 out=f32", "lq20 lk270 d32 bf16 out=f32"});
}

TEST_P(Attention, Scales) {
  expect_right(
      {"lq20 lk270 d32 scale0", "lq20 lk270 d32 scale-0.1", "lq20 lk270 d32 scale1", "lq20 lk270 d32 scale1e-30"});
}

TEST_P(Attention, Varlen) {
  expect_right({"h2 lens_q=5,0,40,1 lens_k=300,7,0,1 d32", "hq4 hkv2 lens_q=17,3,64 lens_k=17,270,10 d16 causal bshd",
                "h2 lens_q=9,20 lens_k=70,9 d16 window4,2 mask=bool:0.5",
                "h2 lens_q=9 lens_k=70 d16 alibi sinks softcap5 bf16", "h1 lens_q=0,0 lens_k=0,0 d16",
                "h2 lens_q=9,20 lens_k=70,9 d16 mask=additive:0.7:h"});
}

TEST_P(Attention, ConstantChannels) {
  expect_right({"h2 lq20 lk270 d32 data=constant", "lq1 lk1 d16 data=constant", "lq2 lk9 d64 data=constant"});
}

TEST_P(Attention, AllZero) {
  Problem p = problem("lq20 lk270 d32");
  Tensors tensors = make_tensors(p);
  for (Tensor* tensor : {&tensors.q, &tensors.k, &tensors.v}) std::memset(tensor->data(), 0, tensor->size_bytes());
  ASSERT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK);
  for (int64_t i = 0; i < p.len_q; ++i) {
    EXPECT_NEAR(tensors.lse.at(0, 0, 0, i), std::log(270.0), 2e-6);
    for (int64_t d = 0; d < p.dim_v; ++d) ASSERT_EQ(tensors.out.at(0, 0, i, d), 0);
  }
}

// With constant values the output is that value, whatever the scores: the denominator must be the sum of what is used.
TEST_P(Attention, ConstantValuesComeOutUnchanged) {
  Problem p = problem("lq40 lk600 d32 causal");
  Tensors tensors = make_tensors(p);
  for (int64_t j = 0; j < p.len_k; ++j)
    for (int64_t d = 0; d < p.dim_v; ++d) tensors.v.set(0, 0, j, d, 1);
  ASSERT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK);
  for (int64_t i = 0; i < p.len_q; ++i)
    for (int64_t d = 0; d < p.dim_v; ++d) ASSERT_NEAR(tensors.out.at(0, 0, i, d), 1, 2e-6);
}

// Logits of 1e5 with a clear winner per row: softmax is one-hot.
TEST_P(Attention, HugeLogitsPickTheWinner) {
  Problem p = problem("lq32 lk300 d32 scale1");
  Tensors tensors = make_tensors(p);
  std::memset(tensors.q.data(), 0, tensors.q.size_bytes());
  std::memset(tensors.k.data(), 0, tensors.k.size_bytes());
  for (int64_t i = 0; i < 32; ++i) {
    tensors.q.set(0, 0, i, i, 1000);
    for (int64_t j = 0; j < 300; ++j) tensors.k.set(0, 0, j, i, j == i * 9 ? 100 : -100);
  }
  ASSERT_EQ(run_guarded(p, tensors, shared_context(isa())), CLARY_OK);
  const bool is_exact = precision() == CLARY_EXACT || precision() == CLARY_BF16X3;  // which leaves such rows to f64
  const double tolerance = is_exact ? 1e-6 : 0.03;
  for (int64_t i = 0; i < 32; ++i) {
    EXPECT_NEAR(tensors.lse.at(0, 0, 0, i), 1e5, is_exact ? 0.1 : 1e3);
    for (int64_t d = 0; d < 32; ++d)
      ASSERT_NEAR(tensors.out.at(0, 0, i, d), tensors.v.at(0, 0, i * 9, d), tolerance) << "row " << i;
  }
}

TEST_P(Attention, LseIsOptional) {
  Problem p = problem("h2 lq33 lk270 d32 causal");
  Tensors with = make_tensors(p), without = make_tensors(p);
  without.lse = Tensor();
  ASSERT_EQ(run_guarded(p, with, shared_context(isa())), CLARY_OK);
  ASSERT_EQ(run_guarded(p, without, shared_context(isa())), CLARY_OK);
  EXPECT_TRUE(same_bits(with.out, without.out));
}

TEST_P(Attention, DefaultParameters) {
  Problem p = support::parse_problem("h2 lq33 lk270 d32");  // precision auto
  Tensors tensors = make_tensors(p), expected = make_tensors(p);
  ASSERT_EQ(run_guarded(p, expected, shared_context(isa())), CLARY_OK);
  ASSERT_EQ(clary_attention(tensors.q.view(), tensors.k.view(), tensors.v.view(), tensors.out.view(), nullptr, nullptr,
                            shared_context(isa())),
            CLARY_OK);
  EXPECT_TRUE(same_bits(tensors.out, expected.out));
}

}  // namespace
}  // namespace clary::test
