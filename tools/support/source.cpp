#include "support/source.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace clary::support {

static std::string printable(std::string_view text) {
  std::string result(text);
  std::replace_if(
      result.begin(), result.end(), [](unsigned char c) { return c < 0x20 || c >= 0x7f; }, '?');
  return result;
}

FileError::FileError(std::string_view name, uint64_t offset, std::string_view reason)
    : std::runtime_error(fmt::format("{}: {} (at byte {})", name, printable(reason), offset)), offset_(offset) {}

std::string quote(std::string_view text) {
  constexpr size_t kShown = 60;
  return "'" + printable(text.substr(0, kShown)) + (text.size() > kShown ? "...'" : "'");
}

Source::Source(const std::string& path) : name_(path), file_(std::fopen(path.c_str(), "rb")) {
  struct stat status {};
  if (!file_ || fstat(fileno(file_.get()), &status) != 0)
    throw std::runtime_error(fmt::format("{}: {}", path, std::strerror(errno)));
  if (!S_ISREG(status.st_mode)) throw std::runtime_error(path + ": not a regular file");
  size_ = static_cast<uint64_t>(status.st_size);
}

Source::Source(std::span<const std::byte> memory, std::string name)
    : name_(std::move(name)), size_(memory.size()), memory_(memory) {}

void Source::fail(uint64_t offset, std::string_view reason) const { throw FileError(name_, offset, reason); }

void Source::read(uint64_t offset, void* destination, uint64_t bytes) const {
  if (offset > size_ || bytes > size_ - offset)
    fail(std::min(offset, size_), fmt::format("{} bytes expected, {} there", bytes, size_ - std::min(offset, size_)));
  if (bytes == 0) return;
  if (!file_) {
    std::memcpy(destination, memory_.data() + offset, bytes);
    return;
  }
  auto* to = static_cast<std::byte*>(destination);
  while (bytes > 0) {
    const ssize_t got = pread(fileno(file_.get()), to, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(offset, std::strerror(errno));
    if (got == 0) fail(offset, "the file became shorter while it was read");
    to += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<uint64_t>(got);
  }
}

uint64_t Source::array_bytes(uint64_t offset, const std::vector<int64_t>& shape, uint64_t item_bytes) const {
  constexpr uint64_t kLimit = uint64_t{1} << 62;
  uint64_t bound = item_bytes;
  bool empty = false;
  for (const int64_t dimension : shape) {
    if (dimension < 0) fail(offset, fmt::format("negative dimension {} in the shape", dimension));
    empty |= dimension == 0;
    const auto factor = static_cast<uint64_t>(std::max<int64_t>(dimension, 1));
    if (bound > kLimit / factor) fail(offset, "the shape's size in bytes exceeds 2^62");
    bound *= factor;
  }
  return empty ? 0 : bound;
}

}  // namespace clary::support
