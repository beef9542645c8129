#include "core/parallel.h"

#include <sched.h>

#include <chrono>

namespace clary {
namespace {

// How long a thread waits for work, or for the others, without sleeping. To be woken takes 50 to 100 us in a virtual
// machine: four such rounds were 280 us of a call of 1.7 ms.
constexpr auto kSpin = std::chrono::microseconds(200);

// For the other thread of a core.
void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

// More threads than cores would spin in each other's way.
ThreadPool::ThreadPool(int threads) : spins_(threads <= available_threads()) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(static_cast<size_t>(i)); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    round_ += kCounts;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(size_t count, void (*task)(void*, size_t), void* arg) {
  task_ = task, arg_ = arg;
  running_ = count - 1;
  {
    const std::lock_guard lock(mutex_);
    round_ = (round_ / kCounts + 1) * kCounts + count;
  }
  wake_.notify_all();
  task(arg, 0);
  wait(done_, [this] { return running_ == 0; });
}

void ThreadPool::work(size_t index) {
  for (uint64_t seen = 0;;) {
    wait(wake_, [&] { return round_ != seen; });
    seen = round_;
    if (stop_) return;
    if (index >= seen % kCounts) continue;
    task_(arg_, index);
    if (--running_ > 0) continue;
    // Whoever has seen that it is not 0 sleeps by now.
    { const std::lock_guard lock(mutex_); }
    done_.notify_one();
  }
}

template <class Done>
void ThreadPool::wait(std::condition_variable& condition, Done&& done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (spins_ && std::chrono::steady_clock::now() < end)
    for (int i = 0; i < 64; ++i) {  // 1 to 3 us
      if (done()) return;
      relax();
    }
  std::unique_lock lock(mutex_);
  condition.wait(lock, done);
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
