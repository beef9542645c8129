// Negative controls: every check of these tests must fail on a fault planted for it. (Those of the allocation counters
// and of FlashAttention's rule stand beside them, in memory_test.cpp and flash_grid_test.cpp.)
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "support/harness.h"
#include "support/tiles.h"

namespace clary::test {
namespace {

constexpr clary_precision kPrecisions[] = {CLARY_EXACT, CLARY_BF16, CLARY_INT8_F16,
                                           CLARY_INT8,  CLARY_INT4, CLARY_BF16X3};

// A right result that passes its check, to be spoiled.
struct Result {
  Result(const std::string& line, clary_precision precision) : problem(support::parse_problem(line)) {
    problem.precision = precision;
    tensors = make_tensors(problem);
    EXPECT_EQ(run_guarded(problem, tensors, shared_context(isa)), CLARY_OK) << clary_last_error();
    rows = rows_of(problem);
    exact = exact_attention(problem, tensors, rows);
    EXPECT_TRUE(passes());
  }
  testing::AssertionResult passes() const { return agrees(problem, tensors, rows, exact, isa); }

  std::string isa = isas().front();
  Problem problem;
  Tensors tensors;
  std::vector<Row> rows;
  Exact exact;
};

TEST(Controls, TheErrorGateSeesWrongOutputs) {
  const std::vector<std::pair<const char*, std::function<void(Tensor&)>>> faults = {
      {"all 0", [](Tensor& out) { std::memset(out.data(), 0, out.size_bytes()); }},
      {"all too large",
       [](Tensor& out) {
         for (int64_t i = 0; i < 24; ++i)
           for (int64_t d = 0; d < 32; ++d) out.set(0, 0, i, d, 1.5 * out.at(0, 0, i, d));
       }},
      {"two rows swapped",
       [](Tensor& out) {
         for (int64_t d = 0; d < 32; ++d) {
           const double kept = out.at(0, 0, 3, d);
           out.set(0, 0, 3, d, out.at(0, 0, 19, d));
           out.set(0, 0, 19, d, kept);
         }
       }},
      {"one row missing",
       [](Tensor& out) {
         for (int64_t d = 0; d < 32; ++d) out.set(0, 0, 21, d, 0);
       }},
      {"two channels missing",
       [](Tensor& out) {
         for (int64_t i = 0; i < 24; ++i) out.set(0, 0, i, 30, 0), out.set(0, 0, i, 31, 0);
       }},
      {"one value far off", [](Tensor& out) { out.set(0, 0, 23, 31, out.at(0, 0, 23, 31) + 2); }},
      {"one NaN", [](Tensor& out) { out.set(0, 0, 23, 31, std::numeric_limits<double>::quiet_NaN()); }},
      {"one infinity", [](Tensor& out) { out.set(0, 0, 0, 0, std::numeric_limits<double>::infinity()); }}};
  for (const clary_precision precision : kPrecisions)
    for (const auto& [what, plant] : faults) {
      Result result("lq24 lk90 d32", precision);
      plant(result.tensors.out);
      EXPECT_FALSE(result.passes()) << what << ", " << support::name_of(precision);
    }
}

TEST(Controls, TheErrorGateSeesSmallFaultsOfExactKernels) {
  Result result("lq40 lk300 d32", CLARY_EXACT);
  for (int64_t i = 0; i < 40; ++i)
    for (int64_t d = 0; d < 32; ++d) result.tensors.out.set(0, 0, i, d, 1.00003 * result.tensors.out.at(0, 0, i, d));
  EXPECT_FALSE(result.passes());
}

TEST(Controls, TheLseCheckSeesWrongLses) {
  for (const clary_precision precision : kPrecisions) {
    const double fault = precision == CLARY_EXACT || precision == CLARY_BF16X3 ? 1e-3
                         : precision == CLARY_INT4                             ? 1
                                                                               : 0.15;
    Result shifted("lq40 lk300 d32", precision), missing("lq40 lk300 d32", precision),
        empty("lq40 lk40 d32 causal=-9", precision);
    shifted.tensors.lse.set(0, 0, 0, 17, shifted.tensors.lse.at(0, 0, 0, 17) + fault);
    EXPECT_FALSE(shifted.passes()) << support::name_of(precision);
    missing.tensors.lse.set(0, 0, 0, 39, -std::numeric_limits<double>::infinity());
    EXPECT_FALSE(missing.passes()) << support::name_of(precision);
    empty.tensors.lse.set(0, 0, 0, 0, std::numeric_limits<float>::lowest());  // a finite stand-in for -inf
    EXPECT_FALSE(empty.passes()) << support::name_of(precision);
  }
}

// The result of one problem, judged as another: a feature that is dropped or off by one.
TEST(Controls, TheErrorGateSeesAWrongFeature) {
  const std::vector<std::pair<const char*, const char*>> pairs = {
      {"lq40 lk40 d32 causal=0", "lq40 lk40 d32 causal=1"},
      {"lq40 lk40 d32 causal=top_left", "lq40 lk40 d32"},
      {"lq20 lk40 d32 causal=top_left", "lq20 lk40 d32 causal=bottom_right"},
      {"lq40 lk40 d32 window9,-1", "lq40 lk40 d32 window10,-1"},
      {"lq40 lk40 d32 window3,4", "lq40 lk40 d32 window3,3"},
      {"lq40 lk90 d32 softcap1", "lq40 lk90 d32"},
      {"lq40 lk90 d32 scale0.3", "lq40 lk90 d32"},
      {"h2 lq40 lk90 d32 alibi", "h2 lq40 lk90 d32"},
      {"h2 lq40 lk3 d32 sinks", "h2 lq40 lk3 d32"},
      {"lq40 lk90 d32 mask=bool:0.9", "lq40 lk90 d32"},
      {"lq40 lk90 d32 mask=additive:1", "lq40 lk90 d32"},
      {"b2 lq40 lk90 d32 mask=key_padding:0.5", "b2 lq40 lk90 d32"},
      {"lens_q=20,20 lens_k=45,45 h1 d32", "lens_q=20,20 lens_k=44,46 h1 d32"}};
  for (const clary_precision precision : kPrecisions)
    for (const auto& [line, wrong_line] : pairs) {
      const Result result(line, precision);
      Problem wrong = support::parse_problem(wrong_line);
      wrong.precision = precision;
      Tensors tensors = result.tensors;
      // The same q, k and v: only what is asked about them differs.
      const Tensors asked = make_tensors(wrong);
      tensors.mask = asked.mask, tensors.sinks = asked.sinks, tensors.alibi_slopes = asked.alibi_slopes;
      tensors.cu_seqlens_q = asked.cu_seqlens_q, tensors.cu_seqlens_k = asked.cu_seqlens_k;
      const Exact exact = exact_attention(wrong, tensors, result.rows);
      EXPECT_FALSE(agrees(wrong, tensors, result.rows, exact, result.isa)) << line << " judged as " << wrong_line;
    }
}

TEST(Controls, BitEqualitySeesOneBit) {
  const Tensor zero("f32", {2, 3});
  Tensor other = zero;
  EXPECT_TRUE(same_bits(zero, other));
  static_cast<unsigned char*>(other.data())[23] ^= 0x80;  // 0 becomes -0
  EXPECT_FALSE(same_bits(zero, other));
  EXPECT_FALSE(same_bits(zero, Tensor("f32", {2, 2})));
}

TEST(Controls, TileCountsSeeAnOffsetOfOne) {
  // The last query sees key 255, the last one of the first tile; then one more.
  const Problem p = support::parse_problem("lq64 lk1024 d16 causal=192");
  const Problem wider = support::parse_problem("lq64 lk1024 d16 causal=193");
  const Problem masked = support::parse_problem("lq64 lk1024 d16 mask=block:0.5");
  Tensors tensors = make_tensors(p), mask = make_tensors(masked);
  EXPECT_EQ(count_tiles(p, tensors), (Tiles{12, 0, 4}));
  EXPECT_EQ(count_tiles(wider, tensors), (Tiles{11, 0, 5}));
  const Tiles before = count_tiles(masked, mask);
  mask.mask.set(0, 0, 20, 700, 1 - mask.mask.at(0, 0, 20, 700));
  EXPECT_NE(count_tiles(masked, mask), before);
}

// ---- guard pages -------------------------------------------------------------------------------------------------

volatile unsigned char sink;

TEST(ControlsDeathTest, GuardPagesStopReadsAndWrites) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const Guarded at_end(100, Side::end), at_begin(100, Side::begin);
  Guarded read_only(100, Side::end);
  read_only.make_read_only();
  const auto byte = [](const Guarded& memory) { return static_cast<unsigned char*>(memory.data()); };
  sink = byte(at_end)[99];
  sink = byte(at_begin)[0];
  EXPECT_DEATH(sink = byte(at_end)[100], "");
  EXPECT_DEATH(byte(at_end)[100] = 1, "");
  EXPECT_DEATH(sink = byte(at_begin)[-1], "");
  EXPECT_DEATH(byte(read_only)[50] = 1, "");
}

// The pages stand where the kernels read: a tensor one element or row shorter than its view says is noticed.
TEST(ControlsDeathTest, GuardPagesStopTheKernels) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  for (const std::string& isa : isas())
    for (const clary_precision precision : {CLARY_EXACT, CLARY_INT8}) {
      Problem p = support::parse_problem("h1 lq17 lk33 d24");
      p.precision = precision;
      const Tensors t = make_tensors(p);
      const clary_attention_params params = make_params(p, t);
      const Tensor* const whole[4] = {&t.q, &t.k, &t.v, &t.out};
      for (int cut = 0; cut < 4; ++cut) {
        clary_tensor views[4];
        std::vector<Guarded> memory;
        for (int n = 0; n < 4; ++n) {
          memory.emplace_back(whole[n]->data(), whole[n]->size_bytes() - (n == cut ? sizeof(float) : 0), Side::end);
          views[n] = *whole[n]->view();
          views[n].data = memory.back().data();
        }
        EXPECT_DEATH(
            clary_attention(&views[0], &views[1], &views[2], &views[3], nullptr, &params, make_context(isa).get()), "")
            << cut;
      }
    }
}

}  // namespace
}  // namespace clary::test
