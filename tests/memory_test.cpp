// Where memory comes from: the caller's allocator for everything, nothing in a steady state, nothing lost on failure.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "support/harness.h"

// Every operator new of this program counts, so that a hidden std::vector in a steady call is seen.
namespace {
std::atomic<int64_t> news{0};

void* counted(size_t bytes, size_t alignment) {
  news.fetch_add(1, std::memory_order_relaxed);
  const size_t rounded = std::max(alignment, (bytes + alignment - 1) / alignment * alignment);
  return std::aligned_alloc(alignment, rounded);
}

void* counted_or_throw(size_t bytes, size_t alignment) {
  void* const memory = counted(bytes, alignment);
  if (!memory) throw std::bad_alloc();
  return memory;
}

constexpr size_t kDefaultAlign = alignof(std::max_align_t);
}  // namespace

void* operator new(size_t bytes) { return counted_or_throw(bytes, kDefaultAlign); }
void* operator new[](size_t bytes) { return counted_or_throw(bytes, kDefaultAlign); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return counted_or_throw(bytes, static_cast<size_t>(alignment));
}
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return counted_or_throw(bytes, static_cast<size_t>(alignment));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes, kDefaultAlign); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes, kDefaultAlign); }
void* operator new(size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return counted(bytes, static_cast<size_t>(alignment));
}
void* operator new[](size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return counted(bytes, static_cast<size_t>(alignment));
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace clary::test {
namespace {

// A caller's allocator that keeps books and fails after `budget` allocations.
class Books {
 public:
  static void* allocate(void* user, size_t bytes) {
    Books& books = *static_cast<Books*>(user);
    const std::lock_guard lock(books.mutex_);
    if (books.allocations >= books.budget) return nullptr;
    void* const memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + (bytes == 0 ? 64 : 0));
    books.live_[memory] = bytes;
    books.live_bytes += bytes;
    books.peak_bytes = std::max(books.peak_bytes, books.live_bytes);
    ++books.allocations;
    return memory;
  }
  [[gnu::noinline]] static void release(void* user, void* memory, size_t bytes) {
    Books& books = *static_cast<Books*>(user);
    const std::lock_guard lock(books.mutex_);
    const auto found = books.live_.find(memory);
    if (found == books.live_.end() || found->second != bytes) {
      ++books.wrong_releases;
      return;
    }
    books.live_bytes -= bytes;
    books.live_.erase(found);
    std::free(memory);
  }
  ContextPointer make(const std::string& isa, int threads) {
    clary_context_options options;
    clary_context_options_init(&options);
    options.allocate = allocate;
    options.release = release;
    options.allocator_user = this;
    options.threads = threads;
    options.isa = isa.c_str();
    clary_context* context = nullptr;
    status = clary_context_create(&options, &context);
    return ContextPointer(context);
  }

  size_t live() const { return live_.size(); }
  int64_t allocations = 0, budget = INT64_MAX, wrong_releases = 0;
  size_t live_bytes = 0, peak_bytes = 0;
  clary_status status = CLARY_OK;

 private:
  std::mutex mutex_;
  std::map<void*, size_t> live_;
};

const std::vector<std::string> kLines = {"b2 hq4 hkv2 lq70 lk600 d64 int8 causal",
                                         "b1 h2 lq70 lk600 d40 exact",
                                         "b1 h2 lq70 lk600 d64 int8_f16 mask=bool:0.3 f16",
                                         "b1 h2 lq1 lk9000 d32 int4",
                                         "b1 h2 lq70 lk600 d64 bf16 precision=bf16",
                                         "b1 h2 lq70 lk600 d40 bf16x3 guard1e-9",
                                         "b1 h2 lq70 lk600 d64 int4 guard0.02",
                                         "h2 lens_q=3,70 lens_k=600,30 d32 auto"};

clary_status call(const Problem& p, Tensors& t, clary_context* context) {
  const clary_attention_params params = make_params(p, t);
  return clary_attention(t.q.view(), t.k.view(), t.v.view(), t.out.view(), t.lse.view(), &params, context);
}

class Memory : public testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(Isas, Memory, testing::ValuesIn(isas()),
                         [](const auto& instance) { return identifier(instance.param); });

TEST_P(Memory, BalancesAndIsReported) {
  Books books;
  {
    const ContextPointer context = books.make(GetParam(), 2);
    ASSERT_EQ(books.status, CLARY_OK) << clary_last_error();
    for (const std::string& line : kLines) {
      const Problem p = support::parse_problem(line);
      Tensors t = make_tensors(p);
      ASSERT_EQ(call(p, t, context.get()), CLARY_OK) << line << ": " << clary_last_error();
      EXPECT_EQ(clary_context_workspace_bytes(context.get()), books.live_bytes) << line;
    }
    EXPECT_GT(books.allocations, 0);
  }
  EXPECT_EQ(books.live(), 0u);
  EXPECT_EQ(books.wrong_releases, 0);
}

TEST_P(Memory, NothingIsAllocatedInASteadyState) {
  for (const int threads : {1, 3})
    for (const std::string& line : kLines) {
      const Problem p = support::parse_problem(line);
      Tensors t = make_tensors(p);
      Books books;
      const ContextPointer context = books.make(GetParam(), threads);
      ASSERT_EQ(call(p, t, context.get()), CLARY_OK) << clary_last_error();
      const int64_t allocations_before = books.allocations, news_before = news;
      for (int n = 0; n < 3; ++n) ASSERT_EQ(call(p, t, context.get()), CLARY_OK);
      EXPECT_EQ(books.allocations, allocations_before) << line << ", " << threads << " threads";
      EXPECT_EQ(news, news_before) << line << ", " << threads << " threads";
    }
}

TEST_P(Memory, PlansRunWithoutAllocating) {
  for (const std::string& line : kLines) {
    const Problem p = support::parse_problem(line);
    Tensors t = make_tensors(p);
    Books books;
    const ContextPointer context = books.make(GetParam(), 2);
    const PlanPointer plan = make_plan(p, t, context.get());
    const auto run = [&] {
      return clary_plan_run(plan.get(), t.q.data(), t.k.data(), t.v.data(), t.out.data(),
                            static_cast<float*>(t.lse.data()));
    };
    ASSERT_EQ(run(), CLARY_OK) << clary_last_error();
    const int64_t allocations_before = books.allocations, news_before = news;
    for (int n = 0; n < 3; ++n) ASSERT_EQ(run(), CLARY_OK);
    EXPECT_EQ(books.allocations, allocations_before) << line;
    EXPECT_EQ(news, news_before) << line;
  }
}

TEST_P(Memory, IsOfTheOrderOfTheTensors) {
  // Twice the keys may take twice the memory, never four times: nothing of size Lq x Lk.
  size_t bytes[2];
  for (size_t n = 0; n < 2; ++n) {
    const Problem p = support::parse_problem("b1 h1 d16 int8 lq64 lk" + std::to_string(n == 0 ? 8192 : 16384));
    Tensors t = make_tensors(p);
    const ContextPointer context = make_context(GetParam());
    ASSERT_EQ(call(p, t, context.get()), CLARY_OK);
    bytes[n] = clary_context_workspace_bytes(context.get());
    EXPECT_LE(bytes[n], 4 * (t.k.size_bytes() + t.v.size_bytes()) + (1 << 20));
  }
  EXPECT_LE(bytes[1], 2 * bytes[0] + (1 << 16));
}

TEST_P(Memory, AFailingAllocatorIsReportedAndNothingLeaks) {
  const Problem p = support::parse_problem("b1 h2 lq70 lk600 d64 int4 guard0.02");
  Tensors t = make_tensors(p);
  bool succeeded = false;
  for (int64_t budget = 0; budget < 100 && !succeeded; ++budget) {
    Books books;
    books.budget = budget;
    {
      const ContextPointer context = books.make(GetParam(), 2);
      const clary_status status = context ? call(p, t, context.get()) : books.status;
      succeeded = status == CLARY_OK;
      EXPECT_TRUE(succeeded || status == CLARY_OUT_OF_MEMORY) << "budget " << budget << ": " << clary_last_error();
      // The context survives: once memory is back, the same call works.
      books.budget = INT64_MAX;
      EXPECT_TRUE(!context || call(p, t, context.get()) == CLARY_OK) << clary_last_error();
    }
    EXPECT_EQ(books.live(), 0u) << "budget " << budget;
    EXPECT_EQ(books.wrong_releases, 0);
    EXPECT_TRUE(budget > 0 || !succeeded) << "a call that allocates nothing cannot have used the allocator";
  }
  EXPECT_TRUE(succeeded);
}

// The counters themselves: each planted fault must show.
TEST(MemoryControls, FaultsAreCounted) {
  const int64_t before = news;
  const std::vector<int>* const hidden = new std::vector<int>(100);
  EXPECT_EQ(news, before + 2);
  delete hidden;
  Books books;
  void* const memory = Books::allocate(&books, 100);
  EXPECT_EQ(books.allocations, 1);
  EXPECT_EQ(books.live(), 1u);
  Books::release(&books, memory, 99);
  EXPECT_EQ(books.wrong_releases, 1);  // another size than was asked for
  Books::release(&books, &books, 8);
  EXPECT_EQ(books.wrong_releases, 2);  // memory of someone else
  EXPECT_EQ(books.live(), 1u);
  Books::release(&books, memory, 100);
  EXPECT_EQ(books.live(), 0u);
}

}  // namespace
}  // namespace clary::test
