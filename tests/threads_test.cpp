// The same bits for any number of threads, any schedule and any run.
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "support/harness.h"

namespace clary::test {
namespace {

class Threads : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  const std::string& isa() const { return std::get<0>(GetParam()); }
  Problem problem() const { return support::parse_problem(std::get<1>(GetParam())); }
};

const std::vector<std::string> kLines = {
    "b2 hq6 hkv2 lq70 lk300 d32 causal exact",
    "b1 hq4 hkv2 lq130 lk600 d64 int8",
    "b1 h3 lq50 lk300 d40 dv24 int8_f16 mask=bool:0.5",
    "b1 hq2 hkv1 lq1 lk9000 d32 int8",  // few rows: keys are split and merged
    "b1 hq8 hkv1 lq2 lk5000 d32 exact sinks",
    "b1 hq2 hkv2 lq3 lk7000 d32 int4 causal window3000,0",
    "hq2 hkv1 lens_q=1,1,40 lens_k=6000,3,300 d32 bf16 precision=bf16",
    "hq2 hkv1 lens_q=1,1,40 lens_k=6000,3,300 d32 bf16x3",
    "b1 h2 lq300 lk300 d32 int4 guard0.02",
    "b1 h4 lq40 lk1200 d64 auto f16",
};

INSTANTIATE_TEST_SUITE_P(Isas, Threads, testing::Combine(testing::ValuesIn(isas()), testing::ValuesIn(kLines)),
                         [](const auto& instance) {
                           const size_t line = instance.index % kLines.size();
                           return identifier(std::get<0>(instance.param)) + "_" + std::to_string(line);
                         });

TEST_P(Threads, AnyNumberGivesTheSameBits) {
  const Problem p = problem();
  Tensors expected = make_tensors(p);
  ASSERT_EQ(run_guarded(p, expected, make_context(isa(), 1).get()), CLARY_OK) << clary_last_error();
  for (const int threads : {1, 2, 3, 8}) {
    const ContextPointer context = make_context(isa(), threads);
    for (int run = 0; run < 2; ++run) {
      Tensors got = make_tensors(p);
      ASSERT_EQ(run_guarded(p, got, context.get()), CLARY_OK) << clary_last_error();
      EXPECT_TRUE(same_bits(got.out, expected.out)) << threads << " threads, run " << run;
      EXPECT_TRUE(same_bits(got.lse, expected.lse)) << threads << " threads, run " << run;
    }
  }
}

// Two schedules that a caller's pool may choose.
void serial_in_reverse(void* user, size_t count, void (*task)(void*, size_t), void* task_arg) {
  ++*static_cast<int*>(user);
  for (size_t n = count; n-- > 0;) task(task_arg, n);
}

void one_thread_each(void* user, size_t count, void (*task)(void*, size_t), void* task_arg) {
  ++*static_cast<int*>(user);
  // At most 16 at once, so that a large count does not exhaust the process.
  for (size_t first = 0; first < count; first += 16) {
    std::vector<std::thread> threads;
    for (size_t n = first; n < std::min(count, first + 16); ++n) threads.emplace_back([=] { task(task_arg, n); });
    for (std::thread& thread : threads) thread.join();
  }
}

// A context whose pool is one of the above, which counts its calls. isa: nullptr for the best.
ContextPointer context_of_pool(const char* isa, int threads, clary_parallel_for_fn parallel_for, int& calls) {
  clary_context_options options;
  clary_context_options_init(&options);
  options.isa = isa;
  options.threads = threads;
  options.parallel_for = parallel_for;
  options.parallel_user = &calls;
  clary_context* context = nullptr;
  EXPECT_EQ(clary_context_create(&options, &context), CLARY_OK) << clary_last_error();
  return ContextPointer(context);
}

// How often a call hands work to the caller's pool of two threads.
int rounds_of(const char* line) {
  const Problem p = support::parse_problem(line);
  Tensors tensors = make_tensors(p);
  int calls = 0;
  const ContextPointer context = context_of_pool(nullptr, 2, serial_in_reverse, calls);
  EXPECT_EQ(run_guarded(p, tensors, context.get()), CLARY_OK) << clary_last_error();
  return calls;
}

// Whole heads are tasks if there are many of them; one that is longer than all others together is shared out.
TEST(ThreadsTest, AHeadIsATaskWhereHeadsAreEven) {
  EXPECT_EQ(rounds_of("b16 h4 l40 d16 int8"), 1);
  EXPECT_GT(rounds_of("b16 h3 l40 d16 int8"), 1);
  EXPECT_EQ(rounds_of("lens_q=40,48,40,48 lens_k=40,48,40,48 h20 d16 int8"), 1);
  EXPECT_GT(rounds_of("lens_q=300,17,17,17 lens_k=300,17,17,17 h20 d16 int8"), 1);
}

TEST_P(Threads, TheCallersPoolGivesTheSameBits) {
  const Problem p = problem();
  Tensors expected = make_tensors(p);
  ASSERT_EQ(run_guarded(p, expected, make_context(isa(), 1).get()), CLARY_OK) << clary_last_error();
  for (const clary_parallel_for_fn parallel_for : {serial_in_reverse, one_thread_each}) {
    int calls = 0;
    const ContextPointer context = context_of_pool(isa().c_str(), 4, parallel_for, calls);
    ASSERT_NE(context, nullptr);
    Tensors got = make_tensors(p);
    ASSERT_EQ(run_guarded(p, got, context.get()), CLARY_OK) << clary_last_error();
    EXPECT_GT(calls, 0);
    EXPECT_TRUE(same_bits(got.out, expected.out));
    EXPECT_TRUE(same_bits(got.lse, expected.lse));
  }
}

TEST(ThreadsTest, FewRowsAndManyKeysAreSplit) {
  const Problem p = support::parse_problem("b1 hq2 hkv1 lq1 lk32768 d32 int8");
  const Tensors tensors = make_tensors(p);
  const ContextPointer context = make_context("", 8);
  const PlanPointer plan = make_plan(p, tensors, context.get());
  clary_plan_info info = {};
  info.size = sizeof info;
  ASSERT_EQ(clary_plan_get_info(plan.get(), &info), CLARY_OK);
  EXPECT_GT(info.key_splits, 1);
  EXPECT_GE(info.work_items, 8);
}

// One context serves one call at a time; others wait. Two contexts work side by side.
TEST(ThreadsTest, CallsFromSeveralThreads) {
  const Problem p = support::parse_problem("b1 h2 lq64 lk600 d32 int8 causal");
  Tensors expected = make_tensors(p);
  ASSERT_EQ(run_guarded(p, expected, shared_context(isas().front())), CLARY_OK);
  const ContextPointer shared = make_context("", 2), own = make_context("", 2);
  std::vector<Tensors> results(4, make_tensors(p));
  std::vector<clary_status> statuses(results.size(), CLARY_INTERNAL);
  std::vector<std::thread> threads;
  for (size_t n = 0; n < results.size(); ++n)
    threads.emplace_back([&, n] {
      for (int run = 0; run < 5; ++run) statuses[n] = run_guarded(p, results[n], n < 3 ? shared.get() : own.get());
    });
  for (std::thread& thread : threads) thread.join();
  for (size_t n = 0; n < results.size(); ++n) {
    EXPECT_EQ(statuses[n], CLARY_OK);
    EXPECT_TRUE(same_bits(results[n].out, expected.out));
  }
}

}  // namespace
}  // namespace clary::test
