// The pool that measures its threads does their work, and tells waiting from working.
#include "support/busy.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace clary::support {
namespace {

void work_for(double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) continue;
}

TEST(BusyPool, RunsEveryTaskOnce) {
  BusyPool pool(3);
  std::atomic<int> calls[3] = {};
  for (const size_t count : {3, 1, 2})
    BusyPool::run(
        &pool, count, [](void* arg, size_t i) { ++static_cast<std::atomic<int>*>(arg)[i]; }, calls);
  EXPECT_EQ(calls[0], 3);
  EXPECT_EQ(calls[1], 2);
  EXPECT_EQ(calls[2], 1);
}

TEST(BusyPool, CountsWhatTasksTake) {
  BusyPool pool(2);
  // The first of two tasks works, the second has nothing to do.
  BusyPool::run(
      &pool, 2, [](void*, size_t i) { work_for(i == 0 ? 0.02 : 0); }, nullptr);
  const double once_s = pool.busy_s();
  EXPECT_GE(once_s, 0.02);
  BusyPool::run(
      &pool, 2, [](void*, size_t) { work_for(0.02); }, nullptr);
  EXPECT_GE(pool.busy_s() - once_s, 0.04);
}

}  // namespace
}  // namespace clary::support
