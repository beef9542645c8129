#include "core/parallel.h"

#include <sched.h>

namespace clary {

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(static_cast<size_t>(i)); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(size_t count, void (*task)(void*, size_t), void* arg) {
  {
    const std::lock_guard lock(mutex_);
    task_ = task, arg_ = arg, count_ = count;
    running_ = count - 1;
    ++generation_;
  }
  wake_.notify_all();
  task(arg, 0);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return running_ == 0; });
}

void ThreadPool::work(size_t index) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
    if (stop_) return;
    seen = generation_;
    if (index >= count_) continue;
    lock.unlock();
    task_(arg_, index);
    lock.lock();
    if (--running_ == 0) done_.notify_one();
  }
}

void Parallel::run(size_t tasks, void (*task)(void*, size_t), void* arg) const {
  if (caller != nullptr) return caller(caller_user, tasks, task, arg);
  pool->run(tasks, task, arg);
}

int available_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  const unsigned n = std::thread::hardware_concurrency();
  return n == 0 ? 1 : static_cast<int>(n);
}

}  // namespace clary
