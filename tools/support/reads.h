// A plain sum over memory, by several threads at once: how fast this machine reads what a call has to read.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace clary::support {

// Its threads wait between sums as those of a context do between calls, so that both pay the same for starting.
class Reads {
 public:
  using Memory = std::span<const std::byte>;

  // `threads` >= 1, the caller's included. Each reads one stretch of every memory, whole 64-bit words: up to 7 bytes at
  // the end of a memory are left out.
  Reads(std::vector<Memory> memories, int threads);
  Reads(const Reads&) = delete;
  Reads& operator=(const Reads&) = delete;
  ~Reads();

  // The sum of all words, modulo 2^64. Not for two callers at once.
  uint64_t sum();
  size_t bytes() const;

 private:
  uint64_t stretch(size_t thread) const;
  void work(size_t thread);

  std::vector<Memory> memories_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  uint64_t generation_ = 0, total_ = 0;
  size_t running_ = 0;
  bool stop_ = false;
};

}  // namespace clary::support
