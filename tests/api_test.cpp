// The C interface refuses every wrong argument with the right status and a message that names the argument and its
// value.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/call.h"
#include "support/harness.h"

namespace clary::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();

struct Refusal {
  const char* what;
  clary_status status;
  std::vector<std::string> words;  // each a whole word of the message
  std::function<void(Call&)> spoil;
};

void expect_refused(const Refusal& refusal) {
  for (const bool by_plan : {false, true}) {
    Call call;
    const Tensor before = call.tensors.out;
    refusal.spoil(call);
    EXPECT_EQ(by_plan ? call.plan() : call.run(), refusal.status) << refusal.what << ": " << clary_last_error();
    const std::string message = clary_last_error();
    for (const std::string& word : refusal.words)
      EXPECT_TRUE(has_word(message, word)) << refusal.what << ": no word '" << word << "' in: " << message;
    EXPECT_TRUE(same_bits(before, call.tensors.out)) << refusal.what << ": the output was written";
  }
}

TEST(Api, TheCallThatTestsSpoilIsRight) {
  Call call, varlen;
  EXPECT_EQ(call.run(), CLARY_OK) << clary_last_error();
  EXPECT_EQ(call.plan(), CLARY_OK) << clary_last_error();
  varlen.make_varlen();
  EXPECT_EQ(varlen.run(), CLARY_OK) << clary_last_error();
}

TEST(Api, RefusesMissingTensors) {
  const clary_status bad = CLARY_INVALID_ARGUMENT;
  for (const Refusal& refusal : std::vector<Refusal>{{"no q", bad, {"q"}, [](Call& c) { c.q_or_null = nullptr; }},
                                                     {"no k", bad, {"k"}, [](Call& c) { c.k_or_null = nullptr; }},
                                                     {"no v", bad, {"v"}, [](Call& c) { c.v_or_null = nullptr; }},
                                                     {"no out", bad, {"out"}, [](Call& c) { c.out_or_null = nullptr; }},
                                                     {"no q shape", bad, {"q"}, [](Call& c) { c.q.shape = nullptr; }}})
    expect_refused(refusal);
}

// A plan remembers no data, so that only the call itself can miss it.
TEST(Api, RefusesMissingData) {
  Call call;
  for (auto& [name, tensor] : std::vector<std::pair<const char*, clary_tensor*>>{
           {"q", &call.q}, {"k", &call.k}, {"v", &call.v}, {"out", &call.out}, {"lse", &call.lse}}) {
    void* const data = std::exchange(tensor->data, nullptr);
    EXPECT_EQ(call.run(), CLARY_INVALID_ARGUMENT) << name;
    EXPECT_TRUE(has_word(clary_last_error(), name)) << clary_last_error();
    tensor->data = data;
  }
}

TEST(Api, RefusesWrongShapes) {
  const clary_status bad = CLARY_INVALID_ARGUMENT;
  for (const Refusal& refusal : std::vector<Refusal>{
           {"3-D q", bad, {"q", "3"}, [](Call& c) { c.q.ndim = 3; }},
           {"5-D k",
            bad,
            {"k", "5"},
            [](Call& c) { c.k_shape.push_back(1), c.k.shape = c.k_shape.data(), c.k.ndim = 5; }},
           {"negative ndim", bad, {"v", "-1"}, [](Call& c) { c.v.ndim = -1; }},
           {"negative size", bad, {"q", "-6"}, [](Call& c) { c.q_shape[2] = -6; }},
           {"k of another batch", bad, {"k", "3"}, [](Call& c) { c.k_shape[0] = 3; }},
           {"v of another length", bad, {"v", "10"}, [](Call& c) { c.v_shape[2] = 10; }},
           {"v of other heads", bad, {"v", "1"}, [](Call& c) { c.v_shape[1] = 1; }},
           {"k of another head dim", bad, {"k", "7"}, [](Call& c) { c.k_shape[3] = 7; }},
           {"out of another length", bad, {"out", "5"}, [](Call& c) { c.out_shape[2] = 5; }},
           {"out of another head dim", bad, {"out", "9"}, [](Call& c) { c.out_shape[3] = 9; }},
           {"out of other heads", bad, {"out", "2"}, [](Call& c) { c.out_shape[1] = 2; }},
           {"4-D lse", bad, {"lse", "4"}, [](Call& c) { c.lse = c.q; }},
           {"lse of another length", bad, {"lse", "7"}, [](Call& c) { c.lse_shape[2] = 7; }},
           {"Hq no multiple of Hkv", bad, {"4", "3"}, [](Call& c) { c.k_shape[1] = c.v_shape[1] = 3; }},
           {"no kv heads", bad, {"0"}, [](Call& c) { c.k_shape[1] = c.v_shape[1] = 0; }},
           {"Dk = 0", bad, {"0"}, [](Call& c) { c.q_shape[3] = c.k_shape[3] = 0; }},
           {"Dv = 0", bad, {"0"}, [](Call& c) { c.v_shape[3] = c.out_shape[3] = 0; }},
           {"Dk = 1025", bad, {"1025", "1024"}, [](Call& c) { c.q_shape[3] = c.k_shape[3] = 1025; }},
           {"Dv = 1025", bad, {"1025", "1024"}, [](Call& c) { c.v_shape[3] = c.out_shape[3] = 1025; }}})
    expect_refused(refusal);
}

TEST(Api, RefusesSizesThatOverflow) {
  for (const int64_t huge : {int64_t{1} << 62, std::numeric_limits<int64_t>::max()}) {
    Call call;
    call.q_shape[0] = call.k_shape[0] = call.v_shape[0] = call.out_shape[0] = call.lse_shape[0] = huge;
    EXPECT_NE(call.plan(), CLARY_OK) << huge;
    Call longer;
    longer.k_shape[2] = longer.v_shape[2] = huge;
    EXPECT_NE(longer.plan(), CLARY_OK) << huge;
  }
}

TEST(Api, RefusesWrongTypesAndPlaces) {
  const clary_status bad = CLARY_INVALID_ARGUMENT, unsupported = CLARY_UNSUPPORTED;
  for (const Refusal& refusal : std::vector<Refusal>{
           {"q of int32", unsupported, {"q"}, [](Call& c) { c.q.dtype_code = 0; }},
           {"q of f64", unsupported, {"q"}, [](Call& c) { c.q.dtype_bits = 64; }},
           {"k of f16, q of f32", bad, {"k", "f16", "f32"}, [](Call& c) { c.k.dtype_bits = 16; }},
           {"v of bf16, q of f32", bad, {"v", "bf16", "f32"}, [](Call& c) { c.v.dtype_bits = 16, c.v.dtype_code = 4; }},
           {"out of f16, q of f32", bad, {"out", "f16"}, [](Call& c) { c.out.dtype_bits = 16; }},
           {"lse of f16", bad, {"lse", "f16"}, [](Call& c) { c.lse.dtype_bits = 16; }},
           {"two lanes", bad, {"q", "2"}, [](Call& c) { c.q.dtype_lanes = 2; }},
           {"q on a GPU", unsupported, {"q", "2"}, [](Call& c) { c.q.device_type = 2; }},
           {"out on a GPU", unsupported, {"out", "2"}, [](Call& c) { c.out.device_type = 2; }},
           {"k with last stride 2",
            bad,
            {"k", "2"},
            [](Call& c) {
              c.strides = {288, 144, 16, 2}, c.k.strides = c.strides.data();
            }},
           {"out with last stride 0", bad, {"out", "0"}, [](Call& c) {
              c.strides = {48, 8, 8, 0}, c.out.strides = c.strides.data();
            }}})
    expect_refused(refusal);
}

TEST(Api, RefusesWrongParameters) {
  const clary_status bad = CLARY_INVALID_ARGUMENT;
  for (const Refusal& refusal : std::vector<Refusal>{
           {"size 0", bad, {"size", "0"}, [](Call& c) { c.params.size = 0; }},
           {"size 3", bad, {"size", "3"}, [](Call& c) { c.params.size = 3; }},
           {"layout", bad, {"layout", "7"}, [](Call& c) { c.params.layout = static_cast<clary_layout>(7); }},
           {"precision",
            bad,
            {"precision", "7"},
            [](Call& c) { c.params.precision = static_cast<clary_precision>(7); }},
           {"negative precision",
            bad,
            {"precision", "-1"},
            [](Call& c) { c.params.precision = static_cast<clary_precision>(-1); }},
           {"causal", bad, {"causal", "4"}, [](Call& c) { c.params.causal = static_cast<clary_causal>(4); }},
           {"infinite scale", bad, {"softmax_scale", "inf"}, [](Call& c) { c.params.softmax_scale = kInf; }},
           {"negative softcap", bad, {"softcap", "-1"}, [](Call& c) { c.params.softcap = -1; }},
           {"NaN softcap", bad, {"softcap", "nan"}, [](Call& c) { c.params.softcap = kNan; }},
           {"infinite softcap", bad, {"softcap", "inf"}, [](Call& c) { c.params.softcap = kInf; }},
           {"window_left", bad, {"window_left", "-2"}, [](Call& c) { c.params.window_left = -2; }},
           {"window_right", bad, {"window_right", "-9"}, [](Call& c) { c.params.window_right = -9; }},
           {"guard 0", bad, {"guard", "0"}, [](Call& c) { c.params.guard = 0; }},
           {"negative guard", bad, {"guard", "-0.5"}, [](Call& c) { c.params.guard = -0.5; }},
           {"infinite guard", bad, {"guard", "inf"}, [](Call& c) { c.params.guard = kInf; }},
           {"no guard rows",
            bad,
            {"guard_rows", "0", "64"},
            [](Call& c) { c.params.guard = 1, c.params.guard_rows = 0; }},
           {"65 guard rows", bad, {"guard_rows", "65", "64"}, [](Call& c) {
              c.params.guard = 1, c.params.guard_rows = 65;
            }}})
    expect_refused(refusal);
}

TEST(Api, RefusesWrongMasks) {
  const clary_status bad = CLARY_INVALID_ARGUMENT;
  for (const Refusal& refusal : std::vector<Refusal>{{"int mask",
                                                      bad,
                                                      {"mask"},
                                                      [](Call& c) {
                                                        c.params.mask = c.keep(Tensor("i32", {6, 9}));
                                                      }},
                                                     {"5-D mask",
                                                      bad,
                                                      {"mask", "5"},
                                                      [](Call& c) {
                                                        c.params.mask = c.keep(Tensor("bool", {1, 1, 1, 6, 9}));
                                                      }},
                                                     {"mask of another length",
                                                      bad,
                                                      {"mask", "8"},
                                                      [](Call& c) {
                                                        c.params.mask = c.keep(Tensor("bool", {6, 8}));
                                                      }},
                                                     {"mask of other queries",
                                                      bad,
                                                      {"mask", "5"},
                                                      [](Call& c) {
                                                        c.params.mask = c.keep(Tensor("bool", {5, 9}));
                                                      }},
                                                     {"mask of other heads",
                                                      bad,
                                                      {"mask", "3"},
                                                      [](Call& c) {
                                                        c.params.mask = c.keep(Tensor("f32", {3, 6, 9}));
                                                      }},
                                                     {"mask of kv heads",
                                                      bad,
                                                      {"mask", "2"},
                                                      [](Call& c) {
                                                        c.params.mask = c.keep(Tensor("f32", {2, 2, 6, 9}));
                                                      }},
                                                     {"f16 mask, f32 inputs",
                                                      bad,
                                                      {"mask", "f16"},
                                                      [](Call& c) {
                                                        c.params.mask = c.keep(Tensor("f16", {6, 9}));
                                                      }},
                                                     {"mask with last stride 2", bad, {"mask", "2"}, [](Call& c) {
                                                        c.params.mask = c.keep(Tensor("bool", {6, 9}, {18, 2}));
                                                      }}}) {
    expect_refused(refusal);
  }
}

TEST(Api, RefusesWrongSlopesAndSinks) {
  const clary_status bad = CLARY_INVALID_ARGUMENT;
  for (const Refusal& refusal : std::vector<Refusal>{
           {"f16 slopes",
            bad,
            {"alibi_slopes", "f16"},
            [](Call& c) { c.params.alibi_slopes = c.keep(Tensor("f16", {4})); }},
           {"slopes of other heads",
            bad,
            {"alibi_slopes", "5"},
            [](Call& c) { c.params.alibi_slopes = c.keep(Tensor("f32", {5})); }},
           {"slopes of another batch",
            bad,
            {"alibi_slopes", "3"},
            [](Call& c) {
              c.params.alibi_slopes = c.keep(Tensor("f32", {3, 4}));
            }},
           {"3-D slopes",
            bad,
            {"alibi_slopes", "3"},
            [](Call& c) {
              c.params.alibi_slopes = c.keep(Tensor("f32", {1, 2, 4}));
            }},
           {"sinks of other heads", bad, {"sinks", "3"}, [](Call& c) { c.params.sinks = c.keep(Tensor("f32", {3})); }},
           {"2-D sinks",
            bad,
            {"sinks", "2"},
            [](Call& c) {
              c.params.sinks = c.keep(Tensor("f32", {2, 4}));
            }},
           {"bf16 sinks", bad, {"sinks", "bf16"}, [](Call& c) { c.params.sinks = c.keep(Tensor("bf16", {4})); }}})
    expect_refused(refusal);
}

TEST(Api, RefusesWrongSequences) {
  const clary_status bad = CLARY_INVALID_ARGUMENT;
  for (const Refusal& refusal : std::vector<Refusal>{
           {"no cu_seqlens_k",
            bad,
            {"cu_seqlens_k"},
            [](Call& c) { c.make_varlen(), c.params.cu_seqlens_k = nullptr; }},
           {"no cu_seqlens_q",
            bad,
            {"cu_seqlens_q"},
            [](Call& c) { c.make_varlen(), c.params.cu_seqlens_q = nullptr; }},
           {"does not start at 0", bad, {"cu_seqlens_q", "1"}, [](Call& c) { c.make_varlen(), c.cu_q[0] = 1; }},
           {"descends", bad, {"cu_seqlens_q", "13"}, [](Call& c) { c.make_varlen(), c.cu_q[1] = 13; }},
           {"negative", bad, {"cu_seqlens_k", "-2"}, [](Call& c) { c.make_varlen(), c.cu_k[1] = -2; }},
           {"ends early", bad, {"cu_seqlens_k", "17", "18"}, [](Call& c) { c.make_varlen(), c.cu_k[2] = 17; }},
           {"ends late", bad, {"cu_seqlens_k", "19", "18"}, [](Call& c) { c.make_varlen(), c.cu_k[2] = 19; }},
           {"negative number",
            bad,
            {"num_sequences", "-1"},
            [](Call& c) { c.make_varlen(), c.params.num_sequences = -1; }},
           {"batch of 2", bad, {"2"}, [](Call& c) { c.make_varlen(), c.q_shape[0] = 2; }},
           {"mask of too few sequences", bad, {"mask", "3"}, [](Call& c) {
              c.make_varlen(), c.params.mask = c.keep(Tensor("bool", {3, 1, 7, 9}));
            }}})
    expect_refused(refusal);
}

TEST(Api, ExtremeOffsetsAndWindowsAreOrdinary) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max(), kMin = std::numeric_limits<int64_t>::min();
  Call everything;
  ASSERT_EQ(everything.run(), CLARY_OK);
  for (const int64_t window : {int64_t{-1}, kMax}) {
    Call call;
    call.params.causal = CLARY_CAUSAL_OFFSET;
    call.params.causal_offset = window == kMax ? int64_t{1} << 40 : kMax;
    call.params.window_left = call.params.window_right = window;
    ASSERT_EQ(call.run(), CLARY_OK) << clary_last_error();
    EXPECT_TRUE(same_bits(call.tensors.out, everything.tensors.out));
  }
  Call nothing;
  nothing.params.causal = CLARY_CAUSAL_OFFSET;
  nothing.params.causal_offset = kMin;
  ASSERT_EQ(nothing.run(), CLARY_OK) << clary_last_error();
  EXPECT_EQ(nothing.tensors.out.at(1, 3, 5, 7), 0);
  EXPECT_EQ(nothing.tensors.lse.at(0, 1, 3, 5), -kInf);
}

}  // namespace
}  // namespace clary::test
