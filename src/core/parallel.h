// Threads: one loop primitive, over Clary's own pool or the caller's.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "clary/clary.h"

namespace clary {

// `threads` - 1 workers; the caller of run() is the last one. Who has to wait spins before it sleeps, for a call has
// several rounds and to wake a thread takes longer than some of them.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // task(arg, i) for i in 0 .. count-1, each on one thread; count <= threads < kCounts.
  void run(size_t count, void (*task)(void*, size_t), void* arg);

 private:
  static constexpr uint64_t kCounts = 1 << 16;

  void work(size_t index);
  template <class Done>
  void wait(std::condition_variable& condition, Done&& done);

  const bool spins_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  // kCounts times the number of calls of run(), plus the last one's count. A worker takes part in each call once, or
  // learns from the count that it does not: nobody waits for such a worker, so it must not look at anything else.
  std::atomic<uint64_t> round_{0};
  std::atomic<size_t> running_{0};
  std::atomic<bool> stop_{false};
  void (*task_)(void*, size_t) = nullptr;
  void* arg_ = nullptr;
  std::vector<std::thread> workers_;
};

// Where loops run: the pool, the caller's parallel_for, or this thread.
struct Parallel {
  ThreadPool* pool = nullptr;
  clary_parallel_for_fn caller = nullptr;
  void* caller_user = nullptr;
  int threads = 1;

  // body(i, slot) for i in 0 .. count-1. Indices are handed out in ascending order, one at a time; `slot` < threads
  // names the scratch memory that the running task owns.
  template <class Body>
  void for_each(int64_t count, Body&& body) const {
    const int64_t tasks = count < threads ? count : threads;
    if (tasks <= 1) {
      for (int64_t i = 0; i < count; ++i) body(i, 0);
      return;
    }
    struct Loop {
      Body& body;
      int64_t count;
      std::atomic<int64_t> next{0};
    } loop{body, count};
    run(
        static_cast<size_t>(tasks),
        [](void* arg, size_t slot) {
          auto& l = *static_cast<Loop*>(arg);
          for (int64_t i = l.next++; i < l.count; i = l.next++) l.body(i, static_cast<int>(slot));
        },
        &loop);
  }

 private:
  void run(size_t tasks, void (*task)(void*, size_t), void* arg) const;
};

// Cores this process may use.
int available_threads();

}  // namespace clary
