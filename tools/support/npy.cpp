#include "support/npy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <limits>

namespace clary::support {
namespace {

// The literals that NumPy writes take a few hundred bytes; NumPy itself refuses more than 10000.
constexpr uint64_t kMaxHeaderBytes = 65536;

struct Header {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;
  uint64_t descr_at = 0, order_at = 0, shape_at = 0;  // offsets in the file; 0 = the key did not appear
};

// The header is a Python literal: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
class HeaderParser {
 public:
  HeaderParser(const Source& source, uint64_t base, std::string_view text)
      : source_(source), base_(base), text_(text) {}

  Header parse() {
    expect('{');
    while (!accept('}')) {
      entry();
      if (accept(',')) continue;
      expect('}');
      break;
    }
    skip_space();
    if (at_ < text_.size()) fail("text after the header's closing brace");
    if (!header_.descr_at) fail("the header has no 'descr'");
    if (!header_.order_at) fail("the header has no 'fortran_order'");
    if (!header_.shape_at) fail("the header has no 'shape'");
    return std::move(header_);
  }

 private:
  [[noreturn]] void fail(std::string_view reason) const { source_.fail(base_ + at_, reason); }
  void skip_space() { at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size()); }
  bool accept(char wanted) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  void expect(char wanted) {
    if (!accept(wanted)) fail(fmt::format("'{}' expected in the header", wanted));
  }

  void entry() {
    skip_space();
    const size_t key_at = at_;
    const std::string_view key = quoted();
    expect(':');
    skip_space();
    uint64_t* const where = key == "descr"           ? &header_.descr_at
                            : key == "fortran_order" ? &header_.order_at
                            : key == "shape"         ? &header_.shape_at
                                                     : nullptr;
    if (!where || *where) {
      at_ = key_at;
      fail((where ? "repeated key " : "unknown key ") + quote(key));
    }
    *where = base_ + at_;
    if (key == "descr") header_.descr = quoted();
    if (key == "fortran_order") header_.fortran_order = boolean();
    if (key == "shape") header_.shape = tuple();
  }

  std::string_view quoted() {
    skip_space();
    const char mark = at_ < text_.size() ? text_[at_] : ' ';
    if (mark == '[') fail("structured types are not supported");
    if (mark != '\'' && mark != '"') fail("a quoted string expected in the header");
    const size_t end = text_.find(mark, at_ + 1);
    if (end == text_.npos) fail("a string in the header does not end");
    const std::string_view result = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return result;
  }

  bool boolean() {
    for (const std::string_view word : {"True", "False"}) {
      if (text_.substr(at_, word.size()) != word) continue;
      at_ += word.size();
      return word == "True";
    }
    fail("True or False expected in the header");
  }

  std::vector<int64_t> tuple() {
    std::vector<int64_t> result;
    expect('(');
    bool comma = true;
    while (!accept(')')) {
      if (!comma) fail("',' or ')' expected in the shape");
      if (result.size() == kMaxDimensions) fail(fmt::format("more than {} dimensions", kMaxDimensions));
      result.push_back(number());
      comma = accept(',');
    }
    if (result.size() == 1 && !comma) fail("the shape is not a tuple: ',' expected");
    return result;
  }

  int64_t number() {
    skip_space();
    if (at_ < text_.size() && text_[at_] == '-') fail("negative dimension in the shape");
    const size_t first = at_;
    int64_t result = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const int64_t digit = text_[at_] - '0';
      if (result > (std::numeric_limits<int64_t>::max() - digit) / 10) fail("a dimension exceeds 63 bits");
      result = result * 10 + digit;
    }
    if (at_ == first) fail("a number expected in the shape");
    if (at_ < text_.size() && text_[at_] == 'L') ++at_;  // Python 2 wrote long integers so
    return result;
  }

  const Source& source_;
  uint64_t base_;
  std::string_view text_;
  size_t at_ = 0;
  Header header_;
};

struct Type {
  const char* dtype;
  uint64_t bytes;
};

Type type_of(const Source& source, const Header& header) {
  const std::string& descr = header.descr;
  if (descr == "<f4") return {"f32", 4};
  if (descr == "<f2") return {"f16", 2};
  if (descr == "|b1" || descr == "|u1") return {"bool", 1};
  const bool maybe_bf16 = descr == "|V2" || descr == "<V2" || descr == "<u2";
  const bool big_endian = !descr.empty() && descr[0] == '>';
  source.fail(header.descr_at,
              fmt::format("type {} is not supported: float32, float16 or bool, little-endian, expected{}", quote(descr),
                          maybe_bf16   ? "; .npy has no bfloat16, use .safetensors for it"
                          : big_endian ? "; this one is big-endian"
                                       : ""));
}

}  // namespace

Tensor read_npy(const Source& source) {
  std::array<unsigned char, 12> lead{};
  source.read(0, lead.data(), 10);
  if (std::memcmp(lead.data(), "\x93NUMPY", 6) != 0)
    source.fail(0, "not a .npy file: it does not begin with \\x93NUMPY");
  const int version = lead[6];
  if (version < 1 || version > 3 || lead[7] != 0)
    source.fail(6, fmt::format("format version {}.{}; 1.0, 2.0 and 3.0 are known", version, lead[7]));
  const uint64_t start = version == 1 ? 10 : 12;
  source.read(0, lead.data(), start);
  uint64_t header_bytes = lead[8] + 256u * lead[9];
  if (version > 1) header_bytes += 65536u * lead[10] + 16777216ull * lead[11];
  if (header_bytes > source.size() - start)
    source.fail(8, fmt::format("header of {} bytes, but only {} follow", header_bytes, source.size() - start));
  if (header_bytes > kMaxHeaderBytes)
    source.fail(8, fmt::format("header of {} bytes; at most {} are read", header_bytes, kMaxHeaderBytes));

  std::string text(header_bytes, '\0');
  source.read(start, text.data(), header_bytes);
  const Header header = HeaderParser(source, start, text).parse();
  const Type type = type_of(source, header);
  if (header.fortran_order)
    source.fail(header.order_at, "Fortran order is not supported; save numpy.ascontiguousarray(x)");
  const uint64_t bytes = source.array_bytes(header.shape_at, header.shape, type.bytes);
  const uint64_t data_at = start + header_bytes, there = source.size() - data_at;
  if (bytes > there)
    source.fail(source.size(), fmt::format("the shape needs {} bytes of data, {} are there", bytes, there));
  if (bytes < there) source.fail(data_at + bytes, fmt::format("{} bytes after the data", there - bytes));
  Tensor tensor(type.dtype, header.shape);
  source.read(data_at, tensor.data(), bytes);
  return tensor;
}

Tensor read_npy(const std::string& path) { return read_npy(Source(path)); }

void write_npy(const std::string& path, const Tensor& tensor) {
  const std::string& dtype = tensor.dtype();
  const char* const descr = dtype == "f32" ? "<f4" : dtype == "f16" ? "<f2" : dtype == "bool" ? "|b1" : nullptr;
  if (!descr) throw std::runtime_error(fmt::format("{}: .npy cannot hold {}", path, dtype));
  const std::vector<int64_t>& shape = tensor.shape();
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", descr,
                                   fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  constexpr size_t kLead = 10, kAlignment = 64;  // the format asks for data at a multiple of 64
  header.append(kAlignment - (kLead + header.size() + 1) % kAlignment, ' ');
  header.push_back('\n');
  std::string lead("\x93NUMPY\x01\x00", 8);
  lead.push_back(static_cast<char>(header.size() % 256));
  lead.push_back(static_cast<char>(header.size() / 256));

  size_t bytes = dtype == "f32" ? 4 : dtype == "f16" ? 2 : 1;
  for (const int64_t dimension : shape) bytes *= static_cast<size_t>(dimension);
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  if (!file) throw std::runtime_error(fmt::format("{}: cannot write: {}", path, std::strerror(errno)));
  const bool written = std::fwrite(lead.data(), 1, lead.size(), file) == lead.size() &&
                       std::fwrite(header.data(), 1, header.size(), file) == header.size() &&
                       (bytes == 0 || std::fwrite(tensor.data(), 1, bytes, file) == bytes);
  const int error = errno;
  if (std::fclose(file) != 0 || !written)
    throw std::runtime_error(fmt::format("{}: cannot write: {}", path, std::strerror(written ? errno : error)));
}

}  // namespace clary::support
