// A plain sum over memory, by several threads at once: how fast this machine reads what a call has to read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace clary {
class ThreadPool;
}

namespace clary::support {

// Its threads are a pool as a context has one, so that both pay the same for starting.
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

  std::vector<Memory> memories_;
  std::vector<uint64_t> sums_;  // of each thread
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace clary::support
