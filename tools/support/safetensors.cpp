#include "support/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

namespace clary::support {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

// Bytes per item of the types that the format names; 0 = unknown.
uint64_t item_bytes(std::string_view dtype) {
  static const std::map<std::string_view, uint64_t> table = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
      {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}, {"C64", 8}};
  const auto found = table.find(dtype);
  return found == table.end() ? 0 : found->second;
}

// Tells how far the JSON parser has read, so that a fault in the meaning has an offset too.
struct CountingIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;
  const char* at;
  const char** furthest;
  reference operator*() const { return *at; }
  CountingIterator& operator++() {
    *furthest = ++at;
    return *this;
  }
  CountingIterator operator++(int) {
    const CountingIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const CountingIterator& other) const { return at == other.at; }
  bool operator!=(const CountingIterator& other) const { return at != other.at; }
};

// Takes the header's JSON event by event: no document is built, so nesting and size cost nothing. The only form:
// {"name": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}, "__metadata__": {"key": "text"}}
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(const Source& source, const std::string& text) : source_(source), text_(text), furthest_(text.data()) {}

  void read() {
    nlohmann::json::sax_parse(CountingIterator{text_.data(), &furthest_},
                              CountingIterator{text_.data() + text_.size(), &furthest_}, this);
  }
  std::vector<Safetensors::Entry> entries;
  std::map<std::string, std::string> metadata;

  bool null() override { fail("null"); }
  bool boolean(bool) override { fail("a boolean"); }
  bool number_integer(number_integer_t) override { fail("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { fail("a number that is no 64-bit integer"); }
  bool binary(binary_t&) override { fail("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (depth_ != 3) fail("a number");
    if (value > static_cast<uint64_t>(INT64_MAX)) wrong(fmt::format("{} exceeds 63 bits", value));
    if (field_ == "data_offsets") {
      if (offsets_ == 2) wrong("more than two data_offsets");
      (offsets_++ == 0 ? entries.back().begin : entries.back().end) = value;
    } else {
      if (entries.back().shape.size() == kMaxDimensions) wrong(fmt::format("more than {} dimensions", kMaxDimensions));
      entries.back().shape.push_back(static_cast<int64_t>(value));
    }
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      metadata[field_] = std::move(value);
    } else {
      if (depth_ != 2 || field_ != "dtype") fail("a string");
      if (item_bytes(value) == 0) wrong("unknown dtype " + quote(value));
      entries.back().dtype = std::move(value);
    }
    return true;
  }

  bool start_object(size_t) override {
    if (depth_ >= 2) fail("an object");
    ++depth_;
    fields_.clear();
    return true;
  }

  bool key(string_t& name) override {
    if (!(depth_ == 1 ? names_ : fields_).insert(name).second) wrong("repeated key " + quote(name));
    if (depth_ == 1) {
      in_metadata_ = name == "__metadata__";
      if (!in_metadata_) entries.emplace_back().name = name;
    } else if (!in_metadata_ && name != "dtype" && name != "shape" && name != "data_offsets") {
      wrong(fmt::format("tensor {}: unknown key {}", quote(entries.back().name), quote(name)));
    }
    field_ = std::move(name);
    return true;
  }

  bool end_object() override {
    if (--depth_ != 1 || in_metadata_) return true;
    for (const char* const needed : {"dtype", "shape", "data_offsets"})
      if (!fields_.count(needed)) wrong(fmt::format("tensor {} has no {}", quote(entries.back().name), needed));
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || field_ == "dtype") fail("an array");
    ++depth_;
    offsets_ = 0;
    return true;
  }

  bool end_array() override {
    --depth_;
    if (field_ == "data_offsets" && offsets_ != 2) wrong("data_offsets needs two numbers");
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    const std::string_view message = error.what();
    const size_t text_at = message.find("] ");
    source_.fail(kLengthBytes + (position > 0 ? position - 1 : 0),
                 fmt::format("header: {}", message.substr(text_at == message.npos ? 0 : text_at + 2, 200)));
  }

 private:
  [[noreturn]] void wrong(std::string_view reason) const {
    const auto read_bytes = static_cast<uint64_t>(furthest_ - text_.data());
    source_.fail(kLengthBytes + (read_bytes > 0 ? read_bytes - 1 : 0), fmt::format("header: {}", reason));
  }
  [[noreturn]] void fail(std::string_view found) const {
    wrong(fmt::format("{} where {} belongs", found,
                      depth_ == 0         ? "the object of all tensors"
                      : depth_ == 1       ? "the object of one tensor"
                      : depth_ == 3       ? "a non-negative integer"
                      : in_metadata_      ? "a metadata string"
                      : field_ == "dtype" ? "a dtype"
                                          : "an array of integers"));
  }

  const Source& source_;
  const std::string& text_;
  const char* furthest_;
  int depth_ = 0;    // 1 in the object of all tensors, 2 in one tensor, 3 in one of its arrays
  int offsets_ = 0;  // read of the current data_offsets
  bool in_metadata_ = false;
  std::string field_;
  std::set<std::string> names_, fields_;
};

}  // namespace

Safetensors::Safetensors(Source source) : source_(std::move(source)) {
  std::array<unsigned char, kLengthBytes> length{};
  source_.read(0, length.data(), kLengthBytes);
  uint64_t header_bytes = 0;
  for (size_t i = kLengthBytes; i-- > 0;) header_bytes = header_bytes << 8 | length[i];
  const uint64_t there = source_.size() - kLengthBytes;
  if (header_bytes > there) source_.fail(0, fmt::format("header of {} bytes, but only {} follow", header_bytes, there));
  if (header_bytes > kMaxHeaderBytes)
    source_.fail(0, fmt::format("header of {} bytes; the format allows {}", header_bytes, kMaxHeaderBytes));
  std::string text(header_bytes, '\0');
  source_.read(kLengthBytes, text.data(), header_bytes);
  if (text.empty() || text[0] != '{') source_.fail(kLengthBytes, "the header does not begin with '{'");

  HeaderReader reader(source_, text);
  reader.read();
  entries_ = std::move(reader.entries);
  metadata_ = std::move(reader.metadata);
  check_layout(kLengthBytes + header_bytes);
}

// The tensors' data must follow each other without overlap, gap or rest.
void Safetensors::check_layout(uint64_t data_at) {
  const uint64_t data_bytes = source_.size() - data_at;
  for (Entry& entry : entries_) {
    const std::string name = quote(entry.name);
    if (entry.begin > entry.end || entry.end > data_bytes)
      source_.fail(data_at + std::min(entry.begin, data_bytes),
                   fmt::format("tensor {}: data_offsets [{}, {}] in {} bytes of data", name, entry.begin, entry.end,
                               data_bytes));
    entry.begin += data_at;
    entry.end += data_at;
    const uint64_t needed = source_.array_bytes(entry.begin, entry.shape, item_bytes(entry.dtype));
    if (needed != entry.end - entry.begin)
      source_.fail(entry.begin, fmt::format("tensor {}: {} bytes of data, but its shape and dtype need {}", name,
                                            entry.end - entry.begin, needed));
  }
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  uint64_t expected = data_at;
  for (const Entry& entry : entries_) {
    if (entry.begin != expected)
      source_.fail(entry.begin, fmt::format("tensor {}: {} the tensor before it", quote(entry.name),
                                            entry.begin < expected ? "its data overlap those of" : "a gap follows"));
    expected = entry.end;
  }
  if (expected != source_.size())
    source_.fail(expected, fmt::format("{} bytes after the data", source_.size() - expected));
}

const Safetensors::Entry* Safetensors::find(const std::string& name) const {
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.name == name; });
  return found == entries_.end() ? nullptr : &*found;
}

Tensor Safetensors::load(const Entry& entry) const {
  static const std::map<std::string_view, const char*> table = {
      {"F32", "f32"}, {"F16", "f16"}, {"BF16", "bf16"}, {"BOOL", "bool"}, {"U8", "bool"}};
  const auto found = table.find(entry.dtype);
  if (found == table.end())
    source_.fail(entry.begin, fmt::format("tensor {}: dtype {} is not supported: F32, F16, BF16 or BOOL expected",
                                          quote(entry.name), entry.dtype));
  Tensor tensor(found->second, entry.shape);
  source_.read(entry.begin, tensor.data(), entry.end - entry.begin);
  return tensor;
}

}  // namespace clary::support
