// A block of GPU threads on one host thread: each GPU thread is a fiber, and what a warp or a block does together is a
// meeting of fibers.
//
// A warp operation (mma, ldmatrix, shuffle, vote) gathers the operands of its 32 lanes; the lane that comes last does
// the work for all. Lanes that meet at different operations, or that wait for something which nobody will bring, end
// the program with a message: on a GPU that is undefined behaviour or a hang.
//
// Asynchronous work (cp.async, bulk copies, wgmma) is done at once or as late as its wait allows, by the throw of a
// seeded coin: both are legal on a GPU, and a kernel that waits too little or lets memory be reused too early shows it
// in one of the two.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <ucontext.h>

namespace clary::emulated {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

// Ends the program: the kernel did what a GPU does not define.
[[noreturn]] void fault(const char* format, ...);

// Work in groups, done in order: by chance when it is handed in, or by the wait for its group.
class Deferred {
 public:
  void add(std::function<void()> work);
  void commit();
  void wait(size_t pending_groups);
  void do_some(size_t leave);
  size_t size() const { return work_.size(); }

 private:
  std::deque<std::function<void()>> work_;
  std::deque<size_t> groups_;  // sizes of the committed ones that are not done
  size_t open_ = 0;
};

// An mbarrier: counts arrivals and bytes of a phase.
struct MemoryBarrier {
  int count = 0, pending = 0;
  int64_t expected_bytes = 0;
  uint64_t phase = 0;

  void arrive();
  void complete_if_done();
};

class Block {
 public:
  // Runs `body` on every thread of one block. Shared memory starts as 0xff: NaN to whoever reads it unwritten.
  void run(Grid index, Grid size, int threads, size_t shared_bytes, const std::function<void()>& body);

  int thread() const { return current_; }
  Grid index() const { return index_; }
  Grid size() const { return size_; }
  int threads() const { return static_cast<int>(threads_.size()); }

  // `bytes` of shared memory at `address`, which must be a multiple of `align`.
  std::byte* shared(uint32_t address, size_t bytes, size_t align);

  // The lanes of a warp meet; `work(operands)` runs once. `operation` must be the same for all.
  using WarpWork = std::function<void(void* const (&operands)[32])>;
  void meet_warp(const char* operation, void* operand, const WarpWork& work);
  // `threads` threads meet at the barrier `id`. arrive: without waiting for the others.
  void meet_block(int id, int threads);
  void arrive_block(int id, int threads);
  // Lets others run until `done()`.
  void wait(const char* what, const std::function<bool()>& done);

  // The mbarrier at a shared address.
  MemoryBarrier& barrier(uint32_t address);
  // A bulk copy that counts on `barrier`. It is done when that is waited for, or any time before.
  void add_bulk(uint32_t barrier, std::function<void()> work);
  void do_bulk(uint32_t barrier);
  bool coin();
  Deferred& copies() { return copies_[static_cast<size_t>(current_)]; }           // cp.async, of a thread
  Deferred& products() { return products_[static_cast<size_t>(current_ / 32)]; }  // wgmma, of a warp
  void made_progress() { idle_turns_ = 0; }

 private:
  struct Thread {
    ucontext_t start;
    std::jmp_buf place;
    bool started = false, finished = false;
  };
  struct Warp {
    int arrived = 0, live = 32;
    uint64_t meetings = 0;
    const char* operation = nullptr;
    void* operands[32] = {};
  };
  struct Barrier {
    int arrived = 0, threads = 0;
    uint64_t meetings = 0;
  };

  static void enter();
  void switch_to(int thread);
  void turn();  // to the next lane of this warp, and after the last one to the next warp
  void finish();
  int live_lane(int from, int to) const;  // the first in [from, to) that has not finished, or -1

  Grid index_, size_;
  const std::function<void()>* body_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<std::unique_ptr<char[]>> stacks_;  // kept from block to block
  std::vector<Warp> warps_;
  Barrier barriers_[16];
  std::map<uint32_t, MemoryBarrier> memory_barriers_;
  std::vector<std::byte> shared_memory_;
  std::byte* shared_ = nullptr;
  size_t shared_bytes_ = 0;
  std::vector<Deferred> copies_, products_;
  std::deque<std::pair<uint32_t, std::function<void()>>> bulk_;
  int current_ = 0, unfinished_ = 0;
  int64_t idle_turns_ = 0;
  uint64_t random_ = 1;
  ucontext_t main_;
};

// The block that is running.
Block& block();

// Runs a grid, block after block.
void launch(Grid grid, int threads, size_t shared_bytes, const std::function<void()>& body);

}  // namespace clary::emulated
