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

// `threads` - 1 sleeping workers; the caller of run() is the last one.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // task(arg, i) for i in 0 .. count-1, each on one thread; count <= threads.
  void run(size_t count, void (*task)(void*, size_t), void* arg);

 private:
  void work(size_t index);

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  uint64_t generation_ = 0;  // counts calls of run(); a worker takes part in each once
  size_t count_ = 0, running_ = 0;
  void (*task_)(void*, size_t) = nullptr;
  void* arg_ = nullptr;
  bool stop_ = false;
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
