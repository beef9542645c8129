// Whole kernels against float64, emulated.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/emulated.h"
#include "support/random_problem.h"

namespace clary::test {
namespace {

constexpr uint64_t kShards = 4;
// The emulator runs a few problems per second; the CPU tests run hundreds.
constexpr uint64_t kShare = 25;

std::vector<Problem> mixed_problems(const std::string& arch, uint64_t shard) {
  const uint64_t seed = environment_or("CLARY_TEST_SEED", 20261);
  const uint64_t count = environment_or("CLARY_TEST_PROBLEMS", 4000) / (kShare * kShards) + 1;
  RandomProblems random(seed * kShards + shard + 1000 * static_cast<uint64_t>(arch.size() + arch.back() * 8));
  std::vector<Problem> problems;
  for (uint64_t n = 0; n < count; ++n) {
    Problem p = random.next();
    if (p.dtype == DType::f32 && p.precision == CLARY_EXACT) p.dtype = DType::bf16;
    if (p.precision == CLARY_BF16X3) p.precision = CLARY_BF16;                // not served
    if (n % 16 == 0) p.dim_v = static_cast<int64_t>(193 + random.below(64));  // rare, for the CPU's sake
    problems.push_back(p);
  }
  return problems;
}

const std::string kEveryArch[] = {"sm80", "sm89", "sm90", "sm100", "sm120"};

class CudaMixed : public testing::TestWithParam<std::tuple<std::string, uint64_t>> {};

std::string name_of_mixed(const testing::TestParamInfo<std::tuple<std::string, uint64_t>>& info) {
  return std::get<0>(info.param) + "_" + std::to_string(std::get<1>(info.param));
}
INSTANTIATE_TEST_SUITE_P(Architectures, CudaMixed,
                         testing::Combine(testing::ValuesIn(kEveryArch), testing::Range(uint64_t{0}, kShards)),
                         name_of_mixed);

// All features at random.
TEST_P(CudaMixed, ProblemsAgreeWithFloat64) {
  const auto& [arch, shard] = GetParam();
  for (const Problem& p : mixed_problems(arch, shard)) EXPECT_TRUE(emulated_runs_right(arch, p));
}

// The draw above has problems for the instances of every head dim, on every list.
TEST(CudaMixedProblems, ReachEveryHeadDim) {
  for (const std::string& arch : kEveryArch) {
    std::map<int, int> reached;
    for (const EmulatedKernel& kernel : emulated_kernels(arch)) reached[kernel.instance.dim] = 0;
    for (uint64_t shard = 0; shard < kShards; ++shard)
      for (const Problem& p : mixed_problems(arch, shard))
        ++reached.lower_bound(static_cast<int>(std::max(p.dim_qk, p.dim_v)))->second;
    for (const auto& [dim, count] : reached) EXPECT_GT(count, 0) << arch << ' ' << dim;
  }
}

// The architectures that differ in instructions: 4-bit products, FP8, warp groups.
constexpr const char* kArchs[] = {"sm80", "sm89", "sm90"};

Problem parse(const std::string& line) { return support::parse_problem(line); }

// Whole and broken tiles of every kernel, at and beside the edges of tiles.
TEST(CudaAttention, LengthsAtTheEdgesOfTiles) {
  for (const char* arch : kArchs)
    for (const char* precision : {"exact", "int8", "int4"})
      for (const int len : {1, 63, 64, 65, 127, 128, 129, 257})
        EXPECT_TRUE(emulated_runs_right(arch, parse("hq1 hkv1 lq" + std::to_string(len) + " lk" + std::to_string(len) +
                                                    " d64 bf16 causal " + precision)));
}

TEST(CudaAttention, EveryInstance) {
  for (const std::string& arch : kEveryArch)
    for (const char* precision :
         {"f16 exact", "bf16 exact", "f32 precision=bf16", "f16 int8_f16", "bf16 int8", "bf16 int4"})
      for (const int dim : {32, 64, 96, 128, 192, 256})
        EXPECT_TRUE(emulated_runs_right(
            arch, parse("hq2 hkv1 lq140 lk300 d" + std::to_string(dim) + " sinks causal=260 " + precision)));
}

TEST(CudaAttention, RowsThatSeeNothing) {
  for (const char* arch : kArchs)
    for (const char* line :
         {"hq2 hkv1 lq150 lk40 d64 causal=-50 bf16 int8", "hq2 hkv1 lq150 lk40 d64 causal=-50 bf16 exact",
          "hq2 hkv1 lq70 lk200 d64 mask=bool:0 bf16 int8", "hq2 hkv1 lq9 lk9 d64 mask=additive:0 f16 int4 sinks",
          "hq1 hkv1 lq5 lk0 d64 f16 int8", "hq1 hkv1 lq5 lk0 d64 f16 exact sinks"}) {
      Problem p = parse("hq1 hkv1 lq1 lk1 d64");
      ASSERT_NO_THROW(p = parse(line)) << line;
      EXPECT_TRUE(emulated_runs_right(arch, p));
    }
}

// Scores of 1e5: no finite stand-in for minus infinity would do, nor a maximum that starts at a number.
TEST(CudaAttention, LargeLogits) {
  for (const char* arch : kArchs)
    for (const char* line :
         {"hq1 hkv1 lq70 lk300 d64 scale12000 bf16 exact", "hq1 hkv1 lq70 lk300 d64 scale-12000 bf16 exact"}) {
      const Problem p = parse(line);
      Tensors tensors = make_tensors(p);
      ASSERT_EQ(run_emulated(arch, p, tensors), CLARY_OK);
      for (int64_t i = 0; i < p.len_q; ++i) {
        EXPECT_GT(std::abs(tensors.lse.at(0, 0, 0, i)), 1e4);
        EXPECT_TRUE(std::isfinite(tensors.out.at(0, 0, i, 0)));
      }
    }
}

// From scores that hardly differ to those of which only one counts: integer exponentials resolve less the wider their
// range is, and must stay below the rounding of Q and K.
TEST(CudaAttention, ScoresOfEveryWidth) {
  for (const char* scale : {"0.001", "0.125", "1", "8", "200", "12000", "-12000"})
    EXPECT_TRUE(emulated_runs_right("sm90", parse(std::string("hq1 hkv1 lq70 lk300 d64 bf16 int8 scale") + scale)));
}

// Odd strides leave rows at addresses that are multiples of two bytes alone: narrower loads and stores serve them.
TEST(CudaAttention, UnalignedRows) {
  for (const char* arch : kArchs)
    for (const char* precision : {"bf16 int8", "f16 exact", "bf16 int4"}) {
      const Problem p = parse(std::string("hq2 hkv1 lq70 lk130 d40 ") + precision);
      Tensors tensors = make_tensors(p);
      for (support::Tensor* tensor : {&tensors.q, &tensors.k, &tensors.v, &tensors.out}) {
        const int64_t* const shape = tensor->view()->shape;
        const int64_t heads = shape[1], rows = shape[2], dim = shape[3];
        support::Tensor odd(p.dtype == DType::f16 ? "f16" : "bf16", {1, heads, rows, dim},
                            {heads * rows * (dim + 3), rows * (dim + 3), dim + 3, 1});
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t d = 0; d < dim; ++d) odd.set(0, h, i, d, tensor->at(0, h, i, d));
        *tensor = std::move(odd);
      }
      ASSERT_EQ(run_emulated(arch, p, tensors), CLARY_OK) << clary_last_error();
      EXPECT_TRUE(emulated_agrees(arch, p, tensors));
    }
}

// Constant and empty channels of V come back as they are.
TEST(CudaAttention, ConstantChannels) {
  for (const char* arch : kArchs)
    for (const char* precision : {"int8", "int4", "int8_f16"}) {
      const Problem p = parse(std::string("hq1 hkv1 lq40 lk200 d64 f32 ") + precision);
      Tensors tensors = make_tensors(p);
      for (int64_t j = 0; j < p.len_k; ++j) tensors.v.set(0, 0, j, 3, 0), tensors.v.set(0, 0, j, 5, 7.25);
      ASSERT_EQ(run_emulated(arch, p, tensors), CLARY_OK);
      for (int64_t i = 0; i < p.len_q; ++i) {
        EXPECT_EQ(tensors.out.at(0, 0, i, 3), 0);
        EXPECT_NEAR(tensors.out.at(0, 0, i, 5), 7.25, 1e-5);
      }
    }
}

// NaN in a key or a value reaches the rows that see it and no others; NaN in a query its own row.
TEST(CudaAttention, NonFiniteInputs) {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  for (const char* arch : kArchs)
    for (const char* precision : {"exact", "int8", "int4"})
      for (const double bad : {nan, infinity}) {
        const Problem p = parse(std::string("hq1 hkv1 lq200 lk200 d64 causal bf16 ") + precision);
        Tensors tensors = make_tensors(p);
        tensors.k.set(0, 0, 150, 2, nan);
        tensors.v.set(0, 0, 180, 1, bad);
        tensors.q.set(0, 0, 20, 0, nan);
        ASSERT_EQ(run_emulated(arch, p, tensors), CLARY_OK);
        for (int64_t i = 0; i < p.len_q; ++i)
          EXPECT_EQ(std::isnan(tensors.out.at(0, 0, i, 1)), i == 20 || i >= 150)
              << arch << ' ' << precision << ' ' << i;
      }
}

TEST(CudaAttention, RunsGiveTheSameBits) {
  for (const char* arch : kArchs)
    for (const char* line : {"hq2 hkv1 lq150 lk300 d64 causal bf16 int8", "hq2 hkv1 lq150 lk300 d64 bf16 int4"}) {
      const Problem p = parse(line);
      Tensors first = make_tensors(p), second = make_tensors(p);
      ASSERT_EQ(run_emulated(arch, p, first), CLARY_OK);
      ASSERT_EQ(run_emulated(arch, p, second), CLARY_OK);  // other coins for what is asynchronous
      EXPECT_TRUE(same_bits(first.out, second.out));
      EXPECT_TRUE(same_bits(first.lse, second.lse));
    }
}

// Faults that a kernel or a quantiser might have, planted: each must fail the comparison with float64.
TEST(CudaAttention, PlantedFaultsAreSeen) {
  const Problem p = parse("hq2 hkv1 lq140 lk300 d64 causal bf16 int8");
  using cuda::CudaPlan;
  using Fault = std::function<void(CudaPlan&)>;
  const std::vector<std::pair<const char*, Fault>> faults = {
      {"K scales of the next group", [](CudaPlan& plan) { ++plan.attention.k_scale; }},
      {"Q scales of the next row", [](CudaPlan& plan) { ++plan.attention.q_scale; }},
      {"V of the next 16 bytes", [](CudaPlan& plan) { plan.attention.v += 16; }},
      {"one key more for causal rows",
       [](CudaPlan& plan) { plan.attention.sees.align = cuda::Align::offset, plan.attention.sees.offset = 161; }},
      {"no centre of V", [](CudaPlan& plan) { plan.attention.v_centre = plan.attention.v_scale; }},
  };
  for (const char* arch : kArchs) {
    EXPECT_TRUE(emulated_runs_right(arch, p));
    for (const auto& [what, fault] : faults) {
      const auto tamper = [&fault = fault](CudaPlan& plan) { return fault(plan), false; };
      EXPECT_FALSE(emulated_runs_right(arch, p, tamper)) << what << " on " << arch;
    }
  }
}

TEST(CudaPlan, SaysWhatIsNotServed) {
  const auto refusal = [](const std::string& line) {
    const Problem p = parse(line);
    Tensors tensors = make_tensors(p);
    EXPECT_EQ(run_emulated("sm80", p, tensors), CLARY_UNSUPPORTED) << line;
    return std::string(clary_last_error());
  };
  EXPECT_NE(refusal("hq1 hkv1 lq4 lk4 d257 f16 int8").find("head dim 257"), std::string::npos);
  EXPECT_NE(refusal("hq1 hkv1 lq4 lk4 d64 dv300 f16 exact").find("v: 300"), std::string::npos);
  EXPECT_NE(refusal("hq1 hkv1 lq4 lk4 d64 f32 exact").find("precision"), std::string::npos);
  EXPECT_NE(refusal("hq1 hkv1 lq4 lk4 d64 f32 bf16x3").find("CLARY_BF16X3"), std::string::npos);
  EXPECT_NE(refusal("hq1 hkv1 lq4 lk4 d64 f16 int8 guard0.02").find("guard"), std::string::npos);
}

TEST(CudaPlan, SaysWhatIsWrongWithAWorkspace) {
  alignas(64) static char memory[128];
  Device device{};
  const auto refusal = [&](void* workspace, size_t bytes) {
    device.workspace = workspace, device.workspace_bytes = bytes;
    const clary_status status = cuda::check_workspace(device, 64);
    return status == CLARY_OK ? std::string() : std::string(clary_last_error());
  };
  EXPECT_EQ(refusal(memory, 64), "");
  EXPECT_NE(refusal(memory, 63).find("workspace: has 63 bytes, needs 64"), std::string::npos);
  EXPECT_NE(refusal(nullptr, 64).find("workspace: has 0 bytes"), std::string::npos);
  EXPECT_NE(refusal(memory + 32, 64).find("not aligned to 64 bytes"), std::string::npos);
}

TEST(CudaInterface, RefusesStridesThatOverflow) {
  const Problem p = parse("hq2 hkv1 lq4 lk4 d64 f16 int8");
  Tensors tensors = make_tensors(p);
  clary_tensor views[4] = {*tensors.q.view(), *tensors.k.view(), *tensors.v.view(), *tensors.out.view()};
  for (clary_tensor& view : views) view.device_type = 2;
  const int64_t strides[4] = {0, int64_t{1} << 61, 64, 1};
  views[0].strides = strides;
  const clary_attention_params params = make_params(p, tensors);
  EXPECT_EQ(clary_attention(&views[0], &views[1], &views[2], &views[3], nullptr, &params, nullptr),
            CLARY_INVALID_ARGUMENT);
  EXPECT_NE(std::string(clary_last_error()).find("q: strides[1]"), std::string::npos) << clary_last_error();
}

// Without a driver, or with one and host memory: an error that says so, never a fault.
TEST(CudaInterface, NamesTheCause) {
  const Problem p = parse("hq1 hkv1 lq4 lk4 d64 f16 int8");
  Tensors tensors = make_tensors(p);
  clary_tensor views[4] = {*tensors.q.view(), *tensors.k.view(), *tensors.v.view(), *tensors.out.view()};
  for (clary_tensor& view : views) view.device_type = 2;
  const clary_attention_params params = make_params(p, tensors);
  EXPECT_NE(clary_attention(&views[0], &views[1], &views[2], &views[3], nullptr, &params, nullptr), CLARY_OK);
  const std::string why = clary_last_error();
  EXPECT_TRUE(why.find("driver") != std::string::npos || why.find("without CUDA") != std::string::npos ||
              why.find("host memory") != std::string::npos || why.find("device") != std::string::npos)
      << why;
  size_t bytes = 0;
  views[1].device_type = 1;
  EXPECT_EQ(clary_cuda_workspace_bytes(&views[0], &views[1], &views[2], &views[3], nullptr, &params, &bytes),
            CLARY_UNSUPPORTED);
  EXPECT_NE(std::string(clary_last_error()).find("k: is on device_type 1"), std::string::npos) << clary_last_error();
}

TEST(CudaInterface, RefusesFieldsOfTheOtherDevice) {
  const Problem p = parse("hq1 hkv1 lq4 lk4 d64 f16 int8");
  Tensors tensors = make_tensors(p);
  const auto refusal = [&](const auto& spoil) {
    clary_tensor views[4] = {*tensors.q.view(), *tensors.k.view(), *tensors.v.view(), *tensors.out.view()};
    clary_attention_params params = make_params(p, tensors);
    spoil(views, params);
    EXPECT_NE(clary_attention(&views[0], &views[1], &views[2], &views[3], nullptr, &params, nullptr), CLARY_OK);
    return std::string(clary_last_error());
  };
  int something = 0;
  EXPECT_NE(refusal([&](clary_tensor*, auto& params) { params.stream = &something; }).find("stream"),
            std::string::npos);
  EXPECT_NE(refusal([&](clary_tensor*, auto& params) { params.workspace_bytes = 8; }).find("workspace"),
            std::string::npos);
  EXPECT_NE(refusal([](clary_tensor*, auto& params) { params.max_len_q = 4; }).find("max_len_q"), std::string::npos);
  EXPECT_NE(refusal([](clary_tensor* views, auto&) { views[2].device_type = 2; }).find("v: is on device_type 2"),
            std::string::npos);
  EXPECT_NE(refusal([](clary_tensor* views, auto&) { views[0].device_type = 10; }).find("q: device_type is 10"),
            std::string::npos);
  const int32_t cu[2] = {0, 4};
  const auto varlen = [&](int64_t longest) {
    return refusal([&](clary_tensor* views, clary_attention_params& params) {
      for (int i = 0; i < 4; ++i) views[i].device_type = 2;
      params.cu_seqlens_q = params.cu_seqlens_k = cu, params.num_sequences = 1;
      params.max_len_q = longest, params.max_len_k = 4;
    });
  };
  EXPECT_NE(varlen(5).find("max_len_q: is 5"), std::string::npos);
  EXPECT_EQ(varlen(4).find("max_len_q"), std::string::npos) << "what is refused then is the machine";
}

TEST(CudaInterface, PlansAreForTheCpu) {
  const Problem p = parse("hq1 hkv1 lq4 lk4 d64 f16 int8");
  Tensors tensors = make_tensors(p);
  clary_tensor views[4] = {*tensors.q.view(), *tensors.k.view(), *tensors.v.view(), *tensors.out.view()};
  for (clary_tensor& view : views) view.device_type = 2;
  const clary_attention_params params = make_params(p, tensors);
  const ContextPointer context = make_context("");
  clary_plan* plan = nullptr;
  EXPECT_EQ(clary_plan_create(&views[0], &views[1], &views[2], &views[3], nullptr, &params, context.get(), &plan),
            CLARY_UNSUPPORTED);
  EXPECT_NE(std::string(clary_last_error()).find("plans"), std::string::npos);
}

}  // namespace
}  // namespace clary::test
