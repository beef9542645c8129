#include "plan/workspace.h"

#include <algorithm>

namespace clary {
namespace {

struct Needs {
  int64_t key_block_bytes = 0, value_block_bytes = 0, value_width = 0, biases = 1, scratch_bytes = 0;
  bool packed = false, tiles = false, key_scales = false, key_zeros = false, value_scales = false;
};

void include(const Plan& plan, Precision precision, bool packed, Needs& needs) {
  const int dim_qk = static_cast<int>(plan.problem.dim_qk), dim_v = static_cast<int>(plan.problem.dim_v);
  const PackedSizes sizes = plan.kernels->sizes(precision, dim_qk, dim_v);
  const size_t scratch = plan.kernels->attend_scratch_bytes(sizes, plan.problem);
  needs.scratch_bytes = std::max(needs.scratch_bytes, static_cast<int64_t>(scratch));
  needs.value_width = std::max(needs.value_width, int64_t{sizes.value_width});
  if (!packed) return;
  needs.packed = true;
  needs.tiles |= sizes.tiles;
  needs.key_block_bytes = std::max(needs.key_block_bytes, sizes.key_block_bytes);
  needs.value_block_bytes = std::max(needs.value_block_bytes, sizes.value_block_bytes);
  needs.biases = std::max(needs.biases, plan.biases(precision));
  needs.key_scales |= sizes.key_scales, needs.key_zeros |= sizes.key_zeros, needs.value_scales |= sizes.value_scales;
  needs.scratch_bytes =
      std::max(needs.scratch_bytes, static_cast<int64_t>(plan.kernels->pack_scratch_bytes(dim_qk, dim_v)));
}

}  // namespace

Workspace::Workspace(const Plan& plan, int threads, Arena& arena) {
  const Problem& p = plan.problem;
  Needs needs;
  include(plan, plan.start, !plan.is_direct(plan.start), needs);
  if (plan.budget > 0)
    for (Precision x = plan.start; x != Precision::exact; x = raised(x)) include(plan, raised(x), true, needs);
  width_qk_ = round_up(p.dim_qk, 16), width_v_ = needs.value_width;
  const int64_t blocks = needs.packed ? plan.blocks * p.heads_kv : 0, heads_kv = p.sequences * p.heads_kv,
                heads_q = p.sequences * p.heads_q;
  keys_ = arena.take<std::byte>(blocks * needs.key_block_bytes);
  values_ = arena.take<std::byte>(blocks * needs.value_block_bytes);
  if (needs.key_scales) key_scales_ = arena.take<float>(blocks * kBlockKeys);
  if (needs.key_zeros) key_zeros_ = arena.take<float>(blocks * kBlockKeys);
  if (needs.value_scales) value_scales_ = arena.take<float>(blocks * width_v_);
  key_bias_ = arena.take<float>(blocks * needs.biases * kBlockKeys);
  if (needs.tiles) bias_words_ = arena.take<uint32_t>(blocks * needs.biases * (kBlockKeys / 2));
  block_norm_ = arena.take<float>(blocks);
  block_live_ = arena.take<BlockLive>(blocks * needs.biases);
  nonfinite_ = arena.take<uint8_t>(blocks * kBlockKeys);
  block_nonfinite_ = arena.take<uint8_t>(blocks);
  key_means_ = arena.take<float>(heads_kv * width_qk_);
  value_means_ = arena.take<float>(heads_kv * width_v_);
  query_means_ = arena.take<float>(heads_q * width_qk_);
  if (plan.most_parts > 1) {
    const int64_t rows = plan.tiles * plan.most_parts * plan.rows_per_tile();
    partials_ = arena.take<PartialRow>(rows);
    partial_outs_ = arena.take<float>(rows * width_v_);
  }
  if (plan.budget > 0) samples_ = arena.take<float>(heads_q * p.guard_rows * p.dim_v);
  scratch_bytes_ = round_up(needs.scratch_bytes, 4096);  // slots on pages of their own
  scratch_ = arena.take<std::byte>(scratch_bytes_ * threads);
}

PackedHead Workspace::head(const Plan& plan, Precision precision, const PackedSizes& sizes, int64_t sequence,
                           int64_t head_kv) const {
  const Problem& p = plan.problem;
  const SequencePlan& s = plan.sequences[sequence];
  const int64_t block = s.first_block * p.heads_kv + head_kv * s.blocks, index = sequence * p.heads_kv + head_kv;
  const int64_t biases = plan.biases(precision);
  PackedHead h;
  h.keys = keys_ + block * sizes.key_block_bytes;
  h.values = values_ + block * sizes.value_block_bytes;
  if (sizes.key_scales) h.key_scales = key_scales_ + block * kBlockKeys;
  if (sizes.key_zeros) h.key_zeros = key_zeros_ + block * kBlockKeys;
  if (sizes.value_scales) h.value_scales = value_scales_ + block * width_v_;
  h.key_bias = key_bias_ + block * biases * kBlockKeys;
  h.key_bias_stride = biases > 1 ? s.blocks * kBlockKeys : 0;
  if (sizes.tiles) h.bias_words = bias_words_ + block * biases * (kBlockKeys / 2);
  h.block_live = block_live_ + block * biases;
  h.block_live_stride = biases > 1 ? s.blocks : 0;
  h.block_norm = block_norm_ + block;
  h.nonfinite = nonfinite_ + block * kBlockKeys;
  h.block_nonfinite = block_nonfinite_ + block;
  h.key_mean = key_mean(index);
  h.value_mean = value_mean(index);
  if (plan.smooths_queries(precision)) {
    h.query_mean = query_mean(sequence * p.heads_q + head_kv * p.group);
    h.query_mean_stride = width_qk_;
  }
  return h;
}

}  // namespace clary
