// Memory whose neighbour faults: a read or write past a tensor's end (or before its beginning) stops the test.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

namespace clary::test {

// Which end of the memory touches an inaccessible page.
enum class Side { end, begin };

class Guarded {
 public:
  Guarded() = default;
  Guarded(size_t bytes, Side side) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inner = (bytes + page - 1) / page * page;
    mapped_bytes_ = inner + 2 * page;
    void* const map = mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    map_ = static_cast<std::byte*>(map);
    if (inner > 0 && mprotect(map_ + page, inner, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    data_ = map_ + page + (side == Side::end ? inner - bytes : 0);
  }
  Guarded(const void* source, size_t bytes, Side side) : Guarded(bytes, side) {
    if (bytes > 0) std::memcpy(data_, source, bytes);
  }
  Guarded(Guarded&& other) noexcept { *this = std::move(other); }
  Guarded& operator=(Guarded&& other) noexcept {
    std::swap(map_, other.map_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
    return *this;
  }
  ~Guarded() {
    if (map_) munmap(map_, mapped_bytes_);
  }

  void* data() const { return data_; }
  size_t size_bytes() const { return bytes_; }
  // From now on a write anywhere in the memory faults (inputs are the caller's).
  void make_read_only() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    if (mapped_bytes_ > 2 * page) mprotect(map_ + page, mapped_bytes_ - 2 * page, PROT_READ);
  }

 private:
  std::byte* map_ = nullptr;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0, mapped_bytes_ = 0;
};

}  // namespace clary::test
