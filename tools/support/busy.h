// How much of a call's time its threads work.
#pragma once

#include <cstddef>
#include <memory>

namespace clary {
class ThreadPool;
}

namespace clary::support {

// A pool as a context has one, for clary_context_options.parallel_for, that measures the time its threads spend in
// tasks. What is missing from all of their time they wait for each other, or for what one thread does alone.
class BusyPool {
 public:
  // `threads` >= 1, the caller's included.
  explicit BusyPool(int threads);
  BusyPool(const BusyPool&) = delete;
  BusyPool& operator=(const BusyPool&) = delete;
  ~BusyPool();

  // A clary_parallel_for_fn whose `user` is a BusyPool.
  static void run(void* pool, size_t count, void (*task)(void*, size_t), void* arg);
  // Seconds of all threads together in tasks so far. Not beside run().
  double busy_s() const { return busy_s_; }

 private:
  std::unique_ptr<ThreadPool> pool_;
  double busy_s_ = 0;
};

}  // namespace clary::support
