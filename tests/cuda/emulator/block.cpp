#include "cuda/emulator/block.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace clary::emulated {
namespace {

constexpr size_t kStackBytes = 256 << 10;
// So many turns without anything coming about are a deadlock.
constexpr int64_t kMostIdleTurns = 2'000'000;

Block the_block;

}  // namespace

Block& block() { return the_block; }

void fault(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fprintf(
      stderr, "emulated GPU, block (%lld, %lld, %lld), thread %d: ", static_cast<long long>(the_block.index().x),
      static_cast<long long>(the_block.index().y), static_cast<long long>(the_block.index().z), the_block.thread());
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
  std::abort();
}

void Block::run(Grid index, Grid size, int threads, size_t shared_bytes, const std::function<void()>& body) {
  index_ = index, size_ = size, body_ = &body;
  threads_.resize(static_cast<size_t>(threads));
  while (stacks_.size() < threads_.size()) stacks_.push_back(std::make_unique_for_overwrite<char[]>(kStackBytes));
  warps_.assign(static_cast<size_t>((threads + 31) / 32), {});
  for (Barrier& barrier : barriers_) barrier = {};
  memory_barriers_.clear();
  shared_memory_.assign(shared_bytes + 1024, std::byte{0xff});
  const auto at = reinterpret_cast<uintptr_t>(shared_memory_.data());
  shared_ = shared_memory_.data() + (1024 - at % 1024) % 1024;
  shared_bytes_ = shared_bytes;
  copies_.assign(static_cast<size_t>(threads), {}), products_.assign(warps_.size(), {}), bulk_.clear();
  idle_turns_ = 0, unfinished_ = threads;
  for (size_t t = 0; t < threads_.size(); ++t) {
    Thread& thread = threads_[t];
    thread.started = thread.finished = false;
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = stacks_[t].get();
    thread.start.uc_stack.ss_size = kStackBytes;
    thread.start.uc_link = nullptr;
    makecontext(&thread.start, &Block::enter, 0);
  }
  current_ = 0;
  threads_[0].started = true;
  swapcontext(&main_, &threads_[0].start);
  if (bulk_.size() > 0) fault("the block has left before its bulk copies were done");
}

void Block::enter() {
  (*the_block.body_)();
  the_block.finish();
}

std::byte* Block::shared(uint32_t address, size_t bytes, size_t align) {
  if (address % align != 0) fault("shared address %u is not a multiple of %zu", address, align);
  if (address + bytes > shared_bytes_) fault("shared address %u + %zu is beyond %zu", address, bytes, shared_bytes_);
  return shared_ + address;
}

// Fibers change places by _setjmp and _longjmp, which leave the signal mask alone: no system call per switch.
void Block::switch_to(int thread) {
  if (thread == current_) return;
  Thread& from = threads_[static_cast<size_t>(current_)];
  if (!from.finished && _setjmp(from.place) != 0) return;
  current_ = thread;
  Thread& to = threads_[static_cast<size_t>(thread)];
  if (to.started) _longjmp(to.place, 1);
  to.started = true;
  setcontext(&to.start);
}

int Block::live_lane(int from, int to) const {
  for (int thread = from; thread < std::min(to, threads()); ++thread)
    if (!threads_[static_cast<size_t>(thread)].finished) return thread;
  return -1;
}

void Block::turn() {
  const int next = live_lane(current_ + 1, current_ / 32 * 32 + 32);
  if (next >= 0) return switch_to(next);
  if (++idle_turns_ > kMostIdleTurns) fault("nothing comes about any more: a deadlock");
  const int warps = static_cast<int>(warps_.size()), mine = current_ / 32;
  for (int step = 1; step <= warps; ++step) {
    const int first = (mine + step) % warps * 32, lane = live_lane(first, first + 32);
    if (lane >= 0) return switch_to(lane);
  }
}

void Block::finish() {
  Warp& warp = warps_[static_cast<size_t>(current_ / 32)];
  threads_[static_cast<size_t>(current_)].finished = true;
  if (warp.arrived > 0 && warp.arrived == warp.live - 1) fault("leaves while its warp waits in %s", warp.operation);
  --warp.live, made_progress();
  if (--unfinished_ == 0) setcontext(&main_);
  turn();
  fault("has nowhere to go");
}

void Block::meet_warp(const char* operation, void* operand, const WarpWork& work) {
  Warp& warp = warps_[static_cast<size_t>(current_ / 32)];
  if (warp.arrived == 0) warp.operation = operation;
  if (std::strcmp(warp.operation, operation) != 0)
    fault("comes to %s while lanes of its warp are in %s", operation, warp.operation);
  warp.operands[current_ % 32] = operand;
  if (warp.live < 32) fault("%s needs 32 lanes, %d are left", operation, warp.live);
  const uint64_t meeting = warp.meetings;
  if (++warp.arrived == 32) {
    work(warp.operands);
    warp.arrived = 0;
    ++warp.meetings;
    made_progress();
    return;
  }
  while (warp.meetings == meeting) turn();
}

void Block::arrive_block(int id, int threads) {
  Barrier& barrier = barriers_[id];
  if (barrier.arrived > 0 && barrier.threads != threads)
    fault("barrier %d is for %d threads here and %d elsewhere", id, threads, barrier.threads);
  barrier.threads = threads;
  if (++barrier.arrived == threads) barrier.arrived = 0, ++barrier.meetings, made_progress();
}

void Block::meet_block(int id, int threads) {
  const uint64_t meeting = barriers_[id].meetings;
  arrive_block(id, threads);
  wait("a barrier", [this, id, meeting] { return barriers_[id].meetings != meeting; });
}

void Block::wait(const char* what, const std::function<bool()>& done) {
  while (!done()) {
    if (idle_turns_ == kMostIdleTurns) fault("waits for %s that nobody brings", what);
    turn();
  }
}

MemoryBarrier& Block::barrier(uint32_t address) {
  shared(address, 8, 8);
  return memory_barriers_[address];
}

void Block::add_bulk(uint32_t barrier, std::function<void()> work) {
  bulk_.emplace_back(barrier, std::move(work));
  if (coin()) do_bulk(bulk_.front().first);
}

void Block::do_bulk(uint32_t barrier) {
  for (size_t i = 0; i < bulk_.size();) {
    if (bulk_[i].first != barrier) {
      ++i;
      continue;
    }
    const auto work = std::move(bulk_[i].second);
    bulk_.erase(bulk_.begin() + static_cast<std::ptrdiff_t>(i));
    work();
    made_progress();
  }
}

void MemoryBarrier::arrive() {
  if (pending == 0) fault("more arrivals at an mbarrier than its count of %d", count);
  --pending, the_block.made_progress();
  complete_if_done();
}

void MemoryBarrier::complete_if_done() {
  if (pending == 0 && expected_bytes == 0) pending = count, ++phase;
}

bool Block::coin() {
  random_ = random_ * 6364136223846793005u + 1442695040888963407u;
  return (random_ >> 62) & 1;
}

void Deferred::add(std::function<void()> work) {
  work_.push_back(std::move(work));
  ++open_;
  if (the_block.coin()) do_some(0);
}

void Deferred::commit() {
  groups_.push_back(open_);
  open_ = 0;
}

void Deferred::wait(size_t pending_groups) {
  size_t leave = open_;
  for (size_t g = 0; g < pending_groups && g < groups_.size(); ++g) leave += groups_[groups_.size() - 1 - g];
  do_some(leave);
  while (groups_.size() > pending_groups) groups_.pop_front();
}

void Deferred::do_some(size_t leave) {
  while (work_.size() > leave) {
    const auto work = std::move(work_.front());
    work_.pop_front();
    work();
    the_block.made_progress();
  }
}

void launch(Grid grid, int threads, size_t shared_bytes, const std::function<void()>& body) {
  for (int64_t z = 0; z < grid.z; ++z)
    for (int64_t y = 0; y < grid.y; ++y)
      for (int64_t x = 0; x < grid.x; ++x) block().run({x, y, z}, grid, threads, shared_bytes, body);
}

}  // namespace clary::emulated
