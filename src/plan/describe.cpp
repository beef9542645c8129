#include "plan/describe.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace clary {
namespace {

struct TileCounts {
  int64_t skipped = 0, full = 0, partial = 0;
  double scores = 0;  // of the visible tiles

  void add(const TileCounts& x, int64_t times) {
    skipped += x.skipped * times, full += x.full * times, partial += x.partial * times;
    scores += x.scores * static_cast<double>(times);
  }
};

// One tile: rows [q0, q1) x keys [k0, k1).
void count_tile(const Problem& p, const Sequence& s, int64_t sequence, int64_t head, int64_t q0, int64_t q1, int64_t k0,
                int64_t k1, TileCounts& counts) {
  bool any_hidden = false, any_shown = false;
  for (int64_t i = q0; i < q1 && !(any_hidden && any_shown); ++i) {
    const KeyRange range = p.visible_keys(s, i);
    const int64_t begin = std::max(range.begin, k0), end = std::min(range.end, k1);
    if (begin > k0 || end < k1) any_hidden = true;
    if (p.mask.kind == Mask::Kind::none) {
      any_shown |= begin < end;
      continue;
    }
    for (int64_t j = begin; j < end && !(any_hidden && any_shown); ++j)
      (p.mask_shows(sequence, head, i, j) ? any_shown : any_hidden) = true;
  }
  if (!any_shown) {
    ++counts.skipped;
    return;
  }
  ++(any_hidden ? counts.partial : counts.full);
  counts.scores += static_cast<double>((q1 - q0) * (k1 - k0));
}

TileCounts count_head(const Problem& p, const SequencePlan& plan, int64_t sequence, int64_t head) {
  TileCounts counts;
  const Sequence& s = plan.tokens;
  for (int64_t q0 = 0; q0 < s.len_q; q0 += kUnitRows)
    for (int64_t k0 = 0; k0 < s.len_k; k0 += kBlockKeys)
      count_tile(p, s, sequence, head, q0, std::min(s.len_q, q0 + kUnitRows), k0, std::min(s.len_k, k0 + kBlockKeys),
                 counts);
  return counts;
}

// Heads and sequences that see the same mask are counted once.
TileCounts count_tiles(const Plan& plan) {
  const Problem& p = plan.problem;
  TileCounts counts;
  const bool heads_differ = p.mask.head != 0, sequences_differ = p.mask.batch != 0 || p.cu_seqlens_q != nullptr;
  const int64_t sequences = sequences_differ ? p.sequences : std::min<int64_t>(p.sequences, 1);
  const int64_t heads = heads_differ ? p.heads_q : std::min<int64_t>(p.heads_q, 1);
  for (int64_t s = 0; s < sequences; ++s)
    for (int64_t h = 0; h < heads; ++h)
      counts.add(count_head(p, plan.sequences[s], s, h),
                 (sequences_differ ? 1 : p.sequences) * (heads_differ ? 1 : p.heads_q));
  return counts;
}

double bytes_of_inputs(const Problem& p) {
  const double batch = p.cu_seqlens_q == nullptr ? static_cast<double>(p.sequences) : 1;
  const double queries = batch * static_cast<double>(p.heads_q * p.len_q),
               keys = batch * static_cast<double>(p.heads_kv * p.len_k);
  const double lse = p.has_lse ? 4 * queries : 0;
  return size_bytes(p.dtype) *
             (queries * static_cast<double>(p.dim_qk) + keys * static_cast<double>(p.dim_qk + p.dim_v)) +
         size_bytes(p.out_dtype) * queries * static_cast<double>(p.dim_v) + lse;
}

// Inputs and outputs once, packed keys and values written once and read once per tile of rows.
double bytes_moved(const Plan& plan) {
  const Problem& p = plan.problem;
  if (plan.is_direct(plan.start)) return bytes_of_inputs(p);
  const PackedSizes sizes = plan.kernels->sizes(plan.start, static_cast<int>(p.dim_qk), static_cast<int>(p.dim_v));
  const auto block = static_cast<double>(sizes.key_block_bytes + sizes.value_block_bytes);
  double packed = 0;
  for (int64_t i = 0; i < p.sequences; ++i) {
    const SequencePlan& s = plan.sequences[i];
    const double tiles = p.heads_kv == 0 ? 0 : static_cast<double>(plan.tiles_of(s)) / static_cast<double>(p.heads_kv);
    packed += static_cast<double>(s.blocks * p.heads_kv) * block * (1 + tiles);
  }
  return bytes_of_inputs(p) + packed;
}

// printf into a bounded buffer that remembers how long the text would be.
class Text {
 public:
  Text(char* to, size_t capacity) : to_(to), capacity_(capacity) {
    if (capacity_ > 0) to_[0] = '\0';
  }
  [[gnu::format(printf, 2, 3)]] void add(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const size_t left = length_ < capacity_ ? capacity_ - length_ : 0;
    const int n = std::vsnprintf(left > 0 ? to_ + length_ : nullptr, left, format, arguments);
    va_end(arguments);
    if (n > 0) length_ += static_cast<size_t>(n);
  }
  size_t length() const { return length_; }

 private:
  char* to_;
  size_t capacity_, length_ = 0;
};

void describe_work(const Plan& plan, const clary_plan_info& info, Text& text) {
  const double total = static_cast<double>(info.tiles_skipped + info.tiles_full + info.tiles_partial);
  const double done = static_cast<double>(info.tiles_full + info.tiles_partial);
  text.add("tiles:     %lld full, %lld partial, %lld skipped (%.1f %% computed; a tile is %d queries x %d keys)\n",
           static_cast<long long>(info.tiles_full), static_cast<long long>(info.tiles_partial),
           static_cast<long long>(info.tiles_skipped), total > 0 ? 100 * done / total : 0.0, kUnitRows, kBlockKeys);
  text.add("work:      %.4g GFLOP in %lld items of up to %lld rows", info.flops * 1e-9,
           static_cast<long long>(plan.items), static_cast<long long>(plan.rows_per_tile()));
  if (plan.item_heads > 1)
    text.add(" (%lld heads share each read of K and V)", static_cast<long long>(plan.item_heads));
  if (plan.most_parts > 1) text.add(", keys cut into %lld parts", static_cast<long long>(plan.most_parts));
  text.add("\nbytes:     %.4g MB moved, at least %.4g MB by the inputs and outputs alone\n", info.bytes_moved * 1e-6,
           info.bytes_lower_bound * 1e-6);
  text.add("memory:    %.4g MB of workspace\n", info.workspace_bytes * 1e-6);
  if (plan.smooths_queries(plan.start))
    text.add("smoothing: K, V and Q\n");
  else if (is_integer(plan.start))
    text.add("smoothing: K and V (too few queries to smooth Q)\n");
  if (plan.problem.folds_mask())
    text.add("mask:      the same for every query: folded into the key bias, costs nothing per score\n");
}

void describe_heads(const Plan& plan, Text& text) {
  if (!(plan.budget > 0) || plan.start == Precision::exact) return;
  const Problem& p = plan.problem;
  int64_t counts[kPrecisions] = {}, measured = 0;
  for (int64_t i = 0; i < p.sequences * p.heads_q; ++i) {
    ++counts[static_cast<int>(plan.heads[i].precision)];
    measured += std::isnan(plan.heads[i].first_error) ? 0 : 1;
  }
  text.add("guard:     budget %.3g relative error, %d sampled rows per head", plan.budget, p.guard_rows);
  if (measured == 0) {
    text.add("; nothing has run yet\n");
    return;
  }
  text.add("; heads at");
  for (int i = kPrecisions - 1; i >= 0; --i)
    if (counts[i] > 0) text.add(" %s: %lld", name(static_cast<Precision>(i)), static_cast<long long>(counts[i]));
  text.add("\n");
  for (int64_t i = 0; i < p.sequences * p.heads_q; ++i) {
    const HeadReport& h = plan.heads[i];
    if (h.raises == 0) continue;
    text.add("           batch %lld head %lld: %s -> %s, was off by %.3g, now by %.3g\n",
             static_cast<long long>(i / p.heads_q), static_cast<long long>(i % p.heads_q), name(plan.start),
             name(h.precision), h.first_error, h.last_error);
  }
}

}  // namespace

clary_plan_info plan_info(const Plan& plan, size_t workspace_bytes) {
  const Problem& p = plan.problem;
  const TileCounts tiles = count_tiles(plan);
  clary_plan_info info = {};
  info.size = sizeof info;
  info.isa = plan.kernels->name;
  info.precision = p.precision;
  info.start = static_cast<clary_precision>(plan.start);
  info.tiles_skipped = tiles.skipped, info.tiles_full = tiles.full, info.tiles_partial = tiles.partial;
  info.flops = tiles.scores * 2 * static_cast<double>(p.dim_qk + p.dim_v);
  info.bytes_moved = bytes_moved(plan);
  info.bytes_lower_bound = bytes_of_inputs(p);
  info.workspace_bytes = static_cast<double>(workspace_bytes);
  info.work_items = plan.items;
  info.key_splits = plan.most_parts;
  return info;
}

size_t describe(const Plan& plan, size_t workspace_bytes, char* buffer, size_t capacity) {
  const Problem& p = plan.problem;
  const clary_plan_info info = plan_info(plan, workspace_bytes);
  Text text(buffer, capacity);
  text.add("problem:   %lld x %lld heads (%lld key-value), %lld queries x %lld keys, head dims %lld and %lld, %s\n",
           static_cast<long long>(p.sequences), static_cast<long long>(p.heads_q), static_cast<long long>(p.heads_kv),
           static_cast<long long>(p.max_len_q), static_cast<long long>(p.max_len_k), static_cast<long long>(p.dim_qk),
           static_cast<long long>(p.dim_v), name(p.dtype));
  text.add("kernel:    %s on %s (%s)\n", name(plan.start), plan.kernels->name, plan.reason);
  describe_work(plan, info, text);
  describe_heads(plan, text);
  return text.length();
}

void report_run(const Plan& plan, int threads, double seconds) {
  const Problem& p = plan.problem;
  std::fprintf(
      stderr, "clary: %lldx%lld/%lld heads, %lldx%lld, d%lld/%lld %s, %s on %s (%s), %lld items, %d threads, %.3f ms\n",
      static_cast<long long>(p.sequences), static_cast<long long>(p.heads_q), static_cast<long long>(p.heads_kv),
      static_cast<long long>(p.max_len_q), static_cast<long long>(p.max_len_k), static_cast<long long>(p.dim_qk),
      static_cast<long long>(p.dim_v), name(p.dtype), name(plan.start), plan.kernels->name, plan.reason,
      static_cast<long long>(plan.items), threads, seconds * 1e3);
}

}  // namespace clary
