#include "support/busy.h"

#include <chrono>
#include <numeric>
#include <vector>

#include "core/parallel.h"

namespace clary::support {

BusyPool::BusyPool(int threads) : pool_(std::make_unique<ThreadPool>(threads)) {}

BusyPool::~BusyPool() = default;

void BusyPool::run(void* pool, size_t count, void (*task)(void*, size_t), void* arg) {
  struct Round {
    void (*task)(void*, size_t);
    void* arg;
    std::vector<double> seconds;  // of each task
  } round{task, arg, std::vector<double>(count)};
  auto& self = *static_cast<BusyPool*>(pool);
  self.pool_->run(
      count,
      [](void* user, size_t index) {
        auto& r = *static_cast<Round*>(user);
        const auto start = std::chrono::steady_clock::now();
        r.task(r.arg, index);
        r.seconds[index] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      },
      &round);
  self.busy_s_ += std::accumulate(round.seconds.begin(), round.seconds.end(), 0.0);
}

}  // namespace clary::support
