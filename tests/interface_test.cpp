// The rest of the C interface: structs of older and newer callers, plans, contexts, names.
#include <gtest/gtest.h>

#include <algorithm>
#include <climits>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "support/call.h"
#include "support/harness.h"

namespace clary::test {
namespace {

// ---- versioned structs -------------------------------------------------------------------------------------------

// The parameters as a caller with an older header has them: no byte beyond `size` is his.
TEST(Interface, OlderCallersWorkAndNothingBeyondTheirSizeIsRead) {
  Call whole, older;
  ASSERT_EQ(whole.run(), CLARY_OK);
  older.params.size = offsetof(clary_attention_params, guard);
  const Guarded memory(&older.params, older.params.size, Side::end);
  const auto* params = static_cast<const clary_attention_params*>(memory.data());
  const clary_status status =
      clary_attention(&older.q, &older.k, &older.v, &older.out, &older.lse, params, shared_context("scalar"));
  ASSERT_EQ(status, CLARY_OK) << clary_last_error();
  EXPECT_TRUE(same_bits(whole.tensors.out, older.tensors.out));
}

TEST(Interface, NewerCallersWorkUntilTheyUseWhatIsNew) {
  Call call;
  struct Newer {
    clary_attention_params params;
    int64_t feature[2];
  } newer = {call.params, {0, 0}};
  newer.params.size = sizeof newer;
  const auto run = [&] {
    return clary_attention(&call.q, &call.k, &call.v, &call.out, nullptr, &newer.params, shared_context("scalar"));
  };
  EXPECT_EQ(run(), CLARY_OK) << clary_last_error();
  newer.feature[1] = 1;
  EXPECT_EQ(run(), CLARY_INVALID_ARGUMENT);
  EXPECT_TRUE(has_word(clary_last_error(), "params")) << clary_last_error();
}

TEST(Interface, InfoStructsAreVersioned) {
  Call call;
  const PlanPointer plan = make_plan(call.problem, call.tensors, shared_context("scalar"));
  clary_plan_info info;
  std::memset(&info, 0x5a, sizeof info);
  info.size = offsetof(clary_plan_info, work_items);
  ASSERT_EQ(clary_plan_get_info(plan.get(), &info), CLARY_OK) << clary_last_error();
  EXPECT_STREQ(info.isa, "scalar");
  EXPECT_EQ(info.work_items, 0x5a5a5a5a5a5a5a5a);  // beyond the caller's size: not written
  info.size = 0;
  EXPECT_EQ(clary_plan_get_info(plan.get(), &info), CLARY_INVALID_ARGUMENT);
  EXPECT_EQ(clary_plan_get_info(plan.get(), nullptr), CLARY_INVALID_ARGUMENT);
  EXPECT_EQ(clary_plan_get_info(nullptr, &info), CLARY_INVALID_ARGUMENT);
}

// ---- plans -------------------------------------------------------------------------------------------------------

TEST(Interface, PlansRefuseWhatTheyCannotRun) {
  Call call;
  const PlanPointer plan = make_plan(call.problem, call.tensors, shared_context("scalar"));
  Tensors& t = call.tensors;
  float* const lse = static_cast<float*>(t.lse.data());
  EXPECT_EQ(clary_plan_run(plan.get(), t.q.data(), t.k.data(), t.v.data(), t.out.data(), lse), CLARY_OK)
      << clary_last_error();
  EXPECT_EQ(clary_plan_run(nullptr, t.q.data(), t.k.data(), t.v.data(), t.out.data(), lse), CLARY_INVALID_ARGUMENT);
  EXPECT_EQ(clary_plan_run(plan.get(), nullptr, t.k.data(), t.v.data(), t.out.data(), lse), CLARY_INVALID_ARGUMENT);
  EXPECT_TRUE(has_word(clary_last_error(), "q")) << clary_last_error();
  EXPECT_EQ(clary_plan_run(plan.get(), t.q.data(), t.k.data(), t.v.data(), t.out.data(), nullptr),
            CLARY_INVALID_ARGUMENT);
  EXPECT_TRUE(has_word(clary_last_error(), "lse")) << clary_last_error();
  clary_head_info head = {};
  head.size = sizeof head;
  EXPECT_EQ(clary_plan_get_head(plan.get(), 1, 3, &head), CLARY_OK) << clary_last_error();
  EXPECT_EQ(clary_plan_get_head(plan.get(), 2, 0, &head), CLARY_INVALID_ARGUMENT);
  EXPECT_TRUE(has_word(clary_last_error(), "batch")) << clary_last_error();
  EXPECT_EQ(clary_plan_get_head(plan.get(), 0, -1, &head), CLARY_INVALID_ARGUMENT);
  EXPECT_TRUE(has_word(clary_last_error(), "head")) << clary_last_error();
  EXPECT_EQ(clary_plan_get_head(plan.get(), 0, 0, nullptr), CLARY_INVALID_ARGUMENT);
  clary_plan_destroy(nullptr);
}

// ---- contexts ----------------------------------------------------------------------------------------------------

struct Options : clary_context_options {
  Options() { clary_context_options_init(this); }
};

void* some_memory(void*, size_t) { return nullptr; }

clary_status create_status(const clary_context_options& options) {
  clary_context* context = nullptr;
  const clary_status status = clary_context_create(&options, &context);
  EXPECT_EQ(status == CLARY_OK, context != nullptr);
  clary_context_destroy(context);
  return status;
}

TEST(Interface, ContextsRefuseWrongOptions) {
  for (const int threads : {0, -1, INT_MIN}) {
    Options options;
    options.threads = threads;
    EXPECT_EQ(create_status(options), CLARY_INVALID_ARGUMENT);
    EXPECT_TRUE(has_word(clary_last_error(), "threads") && has_word(clary_last_error(), std::to_string(threads)))
        << clary_last_error();
  }
  Options unknown, half, sized;
  unknown.isa = "nope";
  EXPECT_EQ(create_status(unknown), CLARY_INVALID_ARGUMENT);
  EXPECT_TRUE(has_word(clary_last_error(), "nope") && has_word(clary_last_error(), "scalar")) << clary_last_error();
  half.allocate = some_memory;
  EXPECT_EQ(create_status(half), CLARY_INVALID_ARGUMENT);
  EXPECT_TRUE(has_word(clary_last_error(), "release")) << clary_last_error();
  sized.size = 0;
  EXPECT_EQ(create_status(sized), CLARY_INVALID_ARGUMENT);
  EXPECT_EQ(clary_context_create(nullptr, nullptr), CLARY_INVALID_ARGUMENT);
  clary_context_destroy(nullptr);
}

TEST(Interface, InstructionSetsThisCpuLacksAreRefused) {
  for (int i = 0; i < clary_isa_count(); ++i) {
    Options options;
    options.isa = clary_isa_name(i);
    EXPECT_EQ(create_status(options), clary_isa_supported(i) ? CLARY_OK : CLARY_UNSUPPORTED) << options.isa;
    EXPECT_TRUE(clary_isa_supported(i) || has_word(clary_last_error(), options.isa)) << clary_last_error();
  }
}

TEST(Interface, TheListOfInstructionSetsIsWellFormed) {
  ASSERT_GE(clary_isa_count(), 1);
  std::vector<std::string> names = isas();
  EXPECT_EQ(std::count(names.begin(), names.end(), "scalar"), 1);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::unique(names.begin(), names.end()), names.end());
  for (const int i : {-1, clary_isa_count()}) EXPECT_EQ(clary_isa_supported(i), 0);
}

// Sets an environment variable for one scope.
class Environment {
 public:
  explicit Environment(const char* value) {
    if (const char* const old = std::getenv("CLARY_ISA")) old_ = old, had_ = true;
    setenv("CLARY_ISA", value, 1);
  }
  ~Environment() { had_ ? setenv("CLARY_ISA", old_.c_str(), 1) : unsetenv("CLARY_ISA"); }

 private:
  std::string old_;
  bool had_ = false;
};

TEST(Interface, TheForcedInstructionSetIsTheOneThatRuns) {
  for (const std::string& isa : isas()) {
    const ContextPointer by_option = make_context(isa);
    EXPECT_EQ(clary_context_isa(by_option.get()), isa);
    const Environment environment(isa.c_str());
    const ContextPointer by_environment = make_context("");
    EXPECT_EQ(clary_context_isa(by_environment.get()), isa);
    const ContextPointer option_wins = make_context("scalar");
    EXPECT_STREQ(clary_context_isa(option_wins.get()), "scalar");
    // Its kernels, not only its name: the plan tells which ones run.
    Call call;
    const PlanPointer plan = make_plan(call.problem, call.tensors, by_environment.get());
    clary_plan_info info = {};
    info.size = sizeof info;
    ASSERT_EQ(clary_plan_get_info(plan.get(), &info), CLARY_OK);
    EXPECT_EQ(info.isa, isa);
  }
}

TEST(Interface, TheBestInstructionSetIsTheDefault) {
  if (std::getenv("CLARY_ISA")) GTEST_SKIP() << "CLARY_ISA is set";
  clary_context* raw = nullptr;
  ASSERT_EQ(clary_context_create(nullptr, &raw), CLARY_OK);
  const ContextPointer context(raw);
  EXPECT_EQ(clary_context_isa(context.get()), isas().front());
}

TEST(Interface, AWrongEnvironmentVariableIsAnError) {
  const Environment environment("avx1024");
  Options options;
  EXPECT_EQ(create_status(options), CLARY_INVALID_ARGUMENT);
  EXPECT_TRUE(has_word(clary_last_error(), "CLARY_ISA") && has_word(clary_last_error(), "avx1024"))
      << clary_last_error();
}

TEST(Interface, ErrorsAndNamesAreText) {
  EXPECT_STREQ(clary_status_name(CLARY_OK), "OK");
  EXPECT_STREQ(clary_status_name(CLARY_INVALID_ARGUMENT), "INVALID_ARGUMENT");
  EXPECT_STREQ(clary_status_name(CLARY_UNSUPPORTED), "UNSUPPORTED");
  EXPECT_STREQ(clary_status_name(CLARY_OUT_OF_MEMORY), "OUT_OF_MEMORY");
  EXPECT_STREQ(clary_status_name(CLARY_INTERNAL), "INTERNAL");
  EXPECT_NE(clary_status_name(static_cast<clary_status>(99)), nullptr);
  EXPECT_STREQ(clary_version(), "0.1.0");
  EXPECT_GT(std::string(clary_cpu_name()).size(), 2u);
}

TEST(Interface, WithoutAContextOneIsMade) {
  Call call, expected;
  ASSERT_EQ(clary_attention(&call.q, &call.k, &call.v, &call.out, &call.lse, &call.params, nullptr), CLARY_OK)
      << clary_last_error();
  const ContextPointer context = make_context("");
  ASSERT_EQ(clary_attention(&expected.q, &expected.k, &expected.v, &expected.out, &expected.lse, &expected.params,
                            context.get()),
            CLARY_OK);
  EXPECT_TRUE(same_bits(call.tensors.out, expected.tensors.out));
}

TEST(Interface, PeaksAreMeasured) {
  double peak = 0;
  for (const clary_peak what : {CLARY_PEAK_F32, CLARY_PEAK_BF16, CLARY_PEAK_INT8}) {
    EXPECT_EQ(clary_measure_peak(isas().front().c_str(), what, 0.02, &peak), CLARY_OK) << clary_last_error();
    EXPECT_GT(peak, 0.1);
  }
  EXPECT_EQ(clary_measure_peak("nope", CLARY_PEAK_F32, 0.02, &peak), CLARY_INVALID_ARGUMENT);
  EXPECT_EQ(clary_measure_peak("scalar", static_cast<clary_peak>(9), 0.02, &peak), CLARY_INVALID_ARGUMENT);
  EXPECT_EQ(clary_measure_peak("scalar", CLARY_PEAK_F32, 0.02, nullptr), CLARY_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace clary::test
