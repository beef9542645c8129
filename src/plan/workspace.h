// The memory of a run, laid out once: packed heads, means, partial results, the guard's sample, scratch per thread.
#pragma once

#include "plan/plan.h"

namespace clary {

class Workspace {
 public:
  // Everything a plan may need at any of its precisions. Run over a measuring arena first.
  Workspace(const Plan& plan, int threads, Arena& arena);

  // Views for one precision; the memory of packed heads is shared by all precisions of a run, one after the other.
  PackedHead head(const Plan& plan, Precision precision, const PackedSizes& sizes, int64_t sequence,
                  int64_t head_kv) const;

  float* key_mean(int64_t head) const { return key_means_ + head * width_qk_; }
  float* value_mean(int64_t head) const { return value_means_ + head * width_v_; }
  float* query_mean(int64_t head) const { return query_means_ + head * width_qk_; }
  PartialRow* partial(const Plan& plan, int64_t tile) const {
    return partials_ + tile * plan.most_parts * plan.rows_per_tile();
  }
  float* partial_out(const Plan& plan, int64_t tile) const {
    return partial_outs_ + tile * plan.most_parts * plan.rows_per_tile() * width_v_;
  }
  // [guard_rows][dim_v] of one query head.
  float* sample(const Plan& plan, int64_t head) const {
    return samples_ + head * plan.problem.guard_rows * plan.problem.dim_v;
  }
  void* scratch(int slot) const { return scratch_ + slot * scratch_bytes_; }

 private:
  int64_t width_qk_ = 0, width_v_ = 0;
  std::byte* keys_ = nullptr;
  std::byte* values_ = nullptr;
  float* key_scales_ = nullptr;
  float* key_zeros_ = nullptr;
  float* value_scales_ = nullptr;
  float* key_bias_ = nullptr;
  uint32_t* bias_words_ = nullptr;
  float* block_norm_ = nullptr;
  BlockLive* block_live_ = nullptr;
  uint8_t* nonfinite_ = nullptr;
  uint8_t* block_nonfinite_ = nullptr;
  float* key_means_ = nullptr;
  float* value_means_ = nullptr;
  float* query_means_ = nullptr;
  PartialRow* partials_ = nullptr;
  float* partial_outs_ = nullptr;
  float* samples_ = nullptr;
  std::byte* scratch_ = nullptr;
  int64_t scratch_bytes_ = 0;
};

}  // namespace clary
