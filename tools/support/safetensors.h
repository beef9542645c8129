// .safetensors files: 8 bytes header length, a JSON header, the tensors' bytes without gaps.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "support/problem.h"
#include "support/source.h"

namespace clary::support {

class Safetensors {
 public:
  struct Entry {
    std::string name, dtype;
    std::vector<int64_t> shape;
    uint64_t begin = 0, end = 0;  // bytes in the file
  };

  // Reads and checks the header; FileError where it is not as it should be. Tensor data stay in the file.
  explicit Safetensors(Source source);
  explicit Safetensors(const std::string& path) : Safetensors(Source(path)) {}

  // In the order of their data.
  const std::vector<Entry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // nullptr where there is none of that name.
  const Entry* find(const std::string& name) const;
  // F32, F16, BF16, BOOL and U8 (as "bool"); FileError for other types.
  Tensor load(const Entry& entry) const;

 private:
  void check_layout(uint64_t data_at);
  Source source_;
  std::vector<Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace clary::support
