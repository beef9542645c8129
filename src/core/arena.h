// A bump allocator over one block of memory. Run a layout twice: over Arena() to learn the size, then over the block.
#pragma once

#include <cstddef>
#include <cstdint>

namespace clary {

class Arena {
 public:
  Arena() = default;
  explicit Arena(void* memory) : base_(static_cast<std::byte*>(memory)) {}

  // `count` objects, aligned to a cache line; nullptr while measuring.
  template <class T>
  T* take(int64_t count) {
    const size_t begin = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + begin);
  }
  size_t used_bytes() const { return used_; }

 private:
  static constexpr size_t kAlign = 64;  // a cache line, and the widest vector
  std::byte* base_ = nullptr;
  size_t used_ = 0;
};

}  // namespace clary
