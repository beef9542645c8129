// Bytes that a reader may not trust: access that never leaves the file, and an error that says what is wrong where.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace clary::support {

class FileError : public std::runtime_error {
 public:
  FileError(std::string_view name, uint64_t offset, std::string_view reason);
  // Byte of the file at which the fault was found.
  uint64_t offset() const { return offset_; }

 private:
  uint64_t offset_;
};

// Text from a file as an error message may show it: quoted, at most 60 bytes, control characters replaced.
std::string quote(std::string_view text);

class Source {
 public:
  // A regular file: pipes and devices have no size to check a header against. Read piece by piece, not mapped: a file
  // that shrinks meanwhile is an error then, not a signal.
  explicit Source(const std::string& path);
  // Memory that outlives the source.
  Source(std::span<const std::byte> memory, std::string name);

  uint64_t size() const { return size_; }
  // Exactly `bytes` bytes from `offset`, or FileError.
  void read(uint64_t offset, void* destination, uint64_t bytes) const;
  [[noreturn]] void fail(uint64_t offset, std::string_view reason) const;
  // Bytes of a dense array, or FileError where that exceeds 2^62 or a dimension is negative. Empty dimensions count as
  // 1 in the bound, so that strides computed from the shape cannot overflow either.
  uint64_t array_bytes(uint64_t offset, const std::vector<int64_t>& shape, uint64_t item_bytes) const;

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string name_;
  uint64_t size_ = 0;
  std::unique_ptr<std::FILE, Close> file_;
  std::span<const std::byte> memory_;
};

// NumPy's own limit. More dimensions than that are a fault of the file.
constexpr size_t kMaxDimensions = 32;

}  // namespace clary::support
