// The C++ veneer: that each option arrives in the C interface, and that objects own what they should.
#include "clary/clary.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <random>
#include <vector>

namespace {

constexpr int64_t kHeadsQ = 4, kHeadsKv = 2, kLength = 70, kDim = 24;

std::vector<float> random_numbers(int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = normal(generator);
  return numbers;
}

clary::Context make_context(const clary::ContextOptions& options = {.threads = 2}) {
  auto context = clary::Context::create(options);
  EXPECT_TRUE(context) << context.status().message();
  return std::move(*context);
}

// Tensors of one small problem.
struct HppTest : testing::Test {
  std::vector<float> q = random_numbers(kHeadsQ * kLength * kDim, 1);
  std::vector<float> k = random_numbers(kHeadsKv * kLength * kDim, 2);
  std::vector<float> v = random_numbers(kHeadsKv * kLength * kDim, 3);
  std::vector<float> out = std::vector<float>(q.size(), -1.0f);
  std::vector<float> lse = std::vector<float>(static_cast<size_t>(kHeadsQ * kLength), -1.0f);
  clary::TensorView q_view{q.data(), {1, kHeadsQ, kLength, kDim}};
  clary::TensorView k_view{k.data(), {1, kHeadsKv, kLength, kDim}};
  clary::TensorView v_view{v.data(), {1, kHeadsKv, kLength, kDim}};
  clary::MutableTensorView out_view{out.data(), {1, kHeadsQ, kLength, kDim}};
  clary::MutableTensorView lse_view{lse.data(), {1, kHeadsQ, kLength}};
  clary::Context context = make_context();

  std::vector<float> attend(const clary::AttentionOptions& options) {
    const auto status = clary::attention(q_view, k_view, v_view, out_view, options, &context);
    EXPECT_TRUE(status) << status.message();
    return out;
  }
};

TEST_F(HppTest, SameAnswerAsTheCInterface) {
  const auto from_cpp =
      attend({.causal = clary::Causal::bottom_right(), .precision = clary::Precision::int8, .lse = lse_view});

  std::vector<float> from_c(out.size()), lse_from_c(lse.size());
  const clary::MutableTensorView from_c_view(from_c.data(), {1, kHeadsQ, kLength, kDim});
  const clary::MutableTensorView lse_from_c_view(lse_from_c.data(), {1, kHeadsQ, kLength});
  const auto c_q = q_view.c_tensor(), c_k = k_view.c_tensor(), c_v = v_view.c_tensor();
  const auto c_out = from_c_view.c_tensor(), c_lse = lse_from_c_view.c_tensor();
  clary_attention_params params;
  clary_attention_params_init(&params);
  params.causal = CLARY_CAUSAL_BOTTOM_RIGHT;
  params.precision = CLARY_INT8;
  ASSERT_EQ(clary_attention(&c_q, &c_k, &c_v, &c_out, &c_lse, &params, context.handle()), CLARY_OK);
  EXPECT_EQ(from_cpp, from_c);
  EXPECT_EQ(lse, lse_from_c);
}

TEST_F(HppTest, EveryOptionChangesTheAnswer) {
  constexpr auto kExact = clary::Precision::exact;
  const auto plain = attend({.precision = kExact});
  const std::vector<float> slopes(kHeadsQ, 0.1f), sinks(kHeadsQ, 1.0f), bias = random_numbers(kLength, 4);
  const clary::TensorView slopes_view(slopes.data(), {kHeadsQ}), sinks_view(sinks.data(), {kHeadsQ});
  const clary::TensorView bias_view(bias.data(), {kLength});
  const std::vector<std::pair<const char*, clary::AttentionOptions>> cases = {
      {"causal", {.causal = clary::Causal::top_left(), .precision = kExact}},
      {"causal offset", {.causal = clary::Causal::offset(5), .precision = kExact}},
      {"window left", {.window = {.left = 3}, .precision = kExact}},
      {"window right", {.window = {.right = 3}, .precision = kExact}},
      {"softmax_scale", {.softmax_scale = 0.0, .precision = kExact}},
      {"softcap", {.softcap = 0.5, .precision = kExact}},
      {"mask", {.mask = bias_view, .precision = kExact}},
      {"alibi_slopes", {.alibi_slopes = slopes_view, .precision = kExact}},
      {"sinks", {.sinks = sinks_view, .precision = kExact}},
      {"precision", {.precision = clary::Precision::int4}},
  };
  std::vector<std::vector<float>> answers = {plain};
  for (const auto& [name, options] : cases) {
    const auto answer = attend(options);
    for (const auto& earlier : answers) EXPECT_NE(answer, earlier) << name;
    answers.push_back(answer);
  }
}

TEST_F(HppTest, LayoutAndStridesDescribeTheSameTensor) {
  const auto expected = attend({.precision = clary::Precision::exact});
  // The same memory as [B, L, H, D], by strides.
  const clary::TensorView q_bshd(q.data(), {1, kLength, kHeadsQ, kDim}, {0, kDim, kLength * kDim, 1});
  const clary::TensorView k_bshd(k.data(), {1, kLength, kHeadsKv, kDim}, {0, kDim, kLength * kDim, 1});
  const clary::TensorView v_bshd(v.data(), {1, kLength, kHeadsKv, kDim}, {0, kDim, kLength * kDim, 1});
  std::vector<float> got(out.size());
  const clary::MutableTensorView got_bshd(got.data(), {1, kLength, kHeadsQ, kDim}, {0, kDim, kLength * kDim, 1});
  const auto status = clary::attention(q_bshd, k_bshd, v_bshd, got_bshd,
                                       {.layout = clary::Layout::bshd, .precision = clary::Precision::exact}, &context);
  ASSERT_TRUE(status) << status.message();
  EXPECT_EQ(got, expected);
}

TEST_F(HppTest, VarlenSequencesAreSeparate) {
  const std::vector<int32_t> ends = {0, 30, static_cast<int32_t>(kLength)};
  const auto got = attend({.cu_seqlens_q = ends, .cu_seqlens_k = ends, .precision = clary::Precision::exact});
  EXPECT_NE(got, attend({.precision = clary::Precision::exact}));

  const std::vector<int32_t> fewer = {0, static_cast<int32_t>(kLength)};
  const auto status =
      clary::attention(q_view, k_view, v_view, out_view, {.cu_seqlens_q = ends, .cu_seqlens_k = fewer}, &context);
  EXPECT_EQ(status.code(), CLARY_INVALID_ARGUMENT);
  EXPECT_NE(status.message().find("cu_seqlens_k"), std::string::npos) << status.message();
}

TEST_F(HppTest, SixteenBitAndBooleanViews) {
  EXPECT_EQ(clary::TensorView(q.data(), clary::DType::bf16, {1, 2}).c_tensor().dtype_code, 4);
  EXPECT_EQ(clary::TensorView(q.data(), clary::DType::bf16, {1, 2}).c_tensor().dtype_bits, 16);
  EXPECT_EQ(clary::TensorView(q.data(), clary::DType::f16, {1, 2}).c_tensor().dtype_code, 2);
  EXPECT_EQ(clary::TensorView(q.data(), clary::DType::f16, {1, 2}).c_tensor().dtype_bits, 16);
  const bool visible[kLength] = {true, true};
  const clary::TensorView mask(visible, {1, kLength});
  EXPECT_EQ(mask.c_tensor().dtype_code, 6);
  const auto got = attend({.mask = mask, .precision = clary::Precision::exact});
  // Only the first two keys are visible: each output lies between their values.
  EXPECT_LE(std::min(v[0], v[kDim]) - 1e-5f, got[0]);
  EXPECT_GE(std::max(v[0], v[kDim]) + 1e-5f, got[0]);
}

TEST_F(HppTest, FailuresHaveACodeAndAReason) {
  const auto status = clary::attention(q_view, k_view, v_view, out_view, {.softcap = -1}, &context);
  EXPECT_FALSE(status);
  EXPECT_EQ(status.code(), CLARY_INVALID_ARGUMENT);
  EXPECT_NE(status.message().find("softcap"), std::string::npos) << status.message();

  const auto plan = clary::Plan::create(q_view, k_view, v_view, out_view,
                                        {
                                            .guard_rows = 0,
                                        },
                                        context);
  EXPECT_FALSE(plan);
  EXPECT_NE(plan.status().message().find("guard_rows"), std::string::npos) << plan.status().message();

  EXPECT_FALSE(clary::Context::create({.threads = 0}));
  const auto unknown = clary::Context::create({.isa = "abacus"});
  EXPECT_NE(unknown.status().message().find("abacus"), std::string::npos) << unknown.status().message();
}

TEST_F(HppTest, PlanKeepsItsOptionsWhenMoved) {
  const std::vector<float> sinks(kHeadsQ, 1.0f);
  const auto make = [&]() -> clary::Result<clary::Plan> {
    const clary::TensorView sinks_view(sinks.data(), {kHeadsQ});  // gone when the plan runs
    return clary::Plan::create(q_view, k_view, v_view, out_view,
                               {.sinks = sinks_view, .precision = clary::Precision::int8, .lse = lse_view}, context);
  };
  auto made = make();
  ASSERT_TRUE(made) << made.status().message();
  clary::Plan plan = std::move(*made);
  const auto status = plan.run(q.data(), k.data(), v.data(), out.data(), lse.data());
  ASSERT_TRUE(status) << status.message();
  const auto planned = out, planned_lse = lse;
  EXPECT_EQ(
      attend(
          {.sinks = clary::TensorView(sinks.data(), {kHeadsQ}), .precision = clary::Precision::int8, .lse = lse_view}),
      planned);
  EXPECT_EQ(lse, planned_lse);

  EXPECT_FALSE(plan.run(q.data(), k.data(), v.data(), out.data())) << "the plan has an LSE";
  const auto info = plan.info();
  ASSERT_TRUE(info) << info.status().message();
  EXPECT_EQ(info->precision, CLARY_INT8);
  EXPECT_EQ(info->isa, context.isa());
  const auto head = plan.head(0, kHeadsQ - 1);
  ASSERT_TRUE(head) << head.status().message();
  EXPECT_EQ(head->precision, CLARY_INT8);
  EXPECT_FALSE(plan.head(0, kHeadsQ));
  const std::string text = plan.describe();
  EXPECT_NE(text.find(context.isa()), std::string::npos) << text;
  EXPECT_EQ(text.find('\0'), std::string::npos);
}

TEST_F(HppTest, GuardRaisesHeadsOverTheBudget) {
  auto plan = clary::Plan::create(q_view, k_view, v_view, out_view,
                                  {.precision = clary::Precision::int8, .guard = 1e-9, .guard_rows = 4}, context);
  ASSERT_TRUE(plan) << plan.status().message();
  ASSERT_TRUE(plan->run(q.data(), k.data(), v.data(), out.data()));
  for (int64_t head = 0; head < kHeadsQ; ++head) EXPECT_EQ(plan->head(0, head)->precision, CLARY_EXACT);
  EXPECT_GT(plan->head(0, 0)->first_error, 1e-9);
}

TEST_F(HppTest, CallersThreadPoolIsUsed) {
  std::atomic<int> loops = 0;
  const clary::ParallelFor backwards = [&loops](size_t count, const std::function<void(size_t)>& task) {
    ++loops;
    for (size_t i = count; i-- > 0;) task(i);
  };
  const auto expected = attend({.precision = clary::Precision::int8});
  context = make_context({.threads = 3, .parallel_for = backwards});
  EXPECT_EQ(attend({.precision = clary::Precision::int8}), expected);
  EXPECT_GT(loops.load(), 0);
}

// Counts what is out, and hands out at most `limit` bytes.
class CountingMemory : public std::pmr::memory_resource {
 public:
  size_t limit = std::numeric_limits<size_t>::max(), held = 0, calls = 0;

 private:
  void* do_allocate(size_t bytes, size_t alignment) override {
    if (bytes > limit) throw std::bad_alloc();
    held += bytes, ++calls;
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* memory, size_t bytes, size_t alignment) override {
    held -= bytes;
    std::pmr::new_delete_resource()->deallocate(memory, bytes, alignment);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

TEST_F(HppTest, CallersAllocatorIsUsedAndItsFailureReported) {
  CountingMemory memory;
  {
    auto counted = make_context({.threads = 1, .memory = &memory});
    const auto first =
        clary::attention(q_view, k_view, v_view, out_view, {.precision = clary::Precision::int8}, &counted);
    ASSERT_TRUE(first) << first.message();
    EXPECT_GT(memory.calls, 0u);
    EXPECT_EQ(memory.held, counted.workspace_bytes());
    const size_t calls = memory.calls;
    ASSERT_TRUE(clary::attention(q_view, k_view, v_view, out_view, {.precision = clary::Precision::int8}, &counted));
    EXPECT_EQ(memory.calls, calls) << "the second call of a shape allocates nothing";
  }
  EXPECT_EQ(memory.held, 0u);

  memory.limit = 0;
  auto starved = make_context({.threads = 1, .memory = &memory});
  const auto status =
      clary::attention(q_view, k_view, v_view, out_view, {.precision = clary::Precision::int8}, &starved);
  EXPECT_EQ(status.code(), CLARY_OUT_OF_MEMORY);
}

}  // namespace
