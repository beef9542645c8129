#include "plan/run.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace clary {
namespace {

// Whole heads as tasks of several threads: so many that the last one leaves no thread idle for more than 3 %.
constexpr double kHeadsPerThread = 32;

class Run {
 public:
  Run(Plan& plan, const Tensors& tensors, const Workspace& workspace, const Parallel& parallel)
      : plan_(plan), p_(plan.problem), t_(tensors), w_(workspace), parallel_(parallel) {}

  void run() {
    plan_.reset_heads();
    const bool guarded = plan_.budget > 0 && plan_.start != Precision::exact;
    if (guarded) take_sample();
    for (Precision precision = plan_.start;; precision = raised(precision)) {
      direct_ = plan_.is_direct(precision);
      if (goes_by_head()) {
        run_heads(precision);
      } else {
        quantise(precision);
        attend();
      }
      if (!guarded || precision == Precision::exact || !judge()) return;
    }
  }

 private:
  // ---- quantise: means, then blocks

  void quantise(Precision precision) {
    begin(precision);
    if (direct_) return;
    const int64_t heads_kv = p_.sequences * p_.heads_kv;
    if (is_integer(precision)) {
      const int64_t heads_q = plan_.smooths_queries(precision) ? p_.sequences * p_.heads_q : 0;
      parallel_.for_each(2 * heads_kv + heads_q, [&](int64_t i, int) {
        i < heads_kv ? key_mean(i) : i < 2 * heads_kv ? value_mean(i - heads_kv) : query_mean(i - 2 * heads_kv);
      });
    }
    parallel_.for_each(plan_.blocks * p_.heads_kv, [&](int64_t i, int slot) { pack(i, slot); });
  }

  void begin(Precision precision) {
    precision_ = precision;
    sizes_ = plan_.kernels->sizes(precision, static_cast<int>(p_.dim_qk), static_cast<int>(p_.dim_v));
  }

  void key_mean(int64_t i) { mean_of(t_.k, p_.k, i, p_.heads_kv, p_.dim_qk, false, w_.key_mean(i)); }
  void value_mean(int64_t i) { mean_of(t_.v, p_.v, i, p_.heads_kv, p_.dim_v, false, w_.value_mean(i)); }
  void query_mean(int64_t i) { mean_of(t_.q, p_.q, i, p_.heads_q, p_.dim_qk, true, w_.query_mean(i)); }

  // With enough heads for all threads, each is a task from its means to its last row: what one step has read, the next
  // finds in the cache.
  bool goes_by_head() const {
    const bool enough = parallel_.threads == 1 || plan_.full_heads >= kHeadsPerThread * parallel_.threads;
    return enough && plan_.most_parts == 1 && !direct_;
  }

  void run_heads(Precision precision) {
    begin(precision);
    parallel_.for_each(p_.sequences * p_.heads_kv, [&](int64_t i, int slot) {
      const SequencePlan& s = plan_.sequences[i / p_.heads_kv];
      const int64_t head = i % p_.heads_kv;
      if (is_integer(precision)) {
        key_mean(i), value_mean(i);
        if (plan_.smooths_queries(precision))
          for (int64_t g = 0; g < p_.group; ++g) query_mean(i * p_.group + g);
      }
      for (int64_t b = 0; b < s.blocks; ++b) pack(s.first_block * p_.heads_kv + head * s.blocks + b, slot);
      const int64_t items = plan_.tiles_of(s) / p_.heads_kv;
      for (int64_t k = 0; k < items; ++k) attend_item(item_at(plan_, s.first_item + head * items + k), slot);
    });
  }

  void mean_of(const void* data, const Strides& strides, int64_t index, int64_t heads, int64_t dim, bool queries,
               float* mean) {
    const Sequence& s = plan_.sequences[index / heads].tokens;
    MeanArgs args;
    const int64_t first =
        s.batch * strides.batch + index % heads * strides.head + (queries ? s.q_begin : s.k_begin) * strides.row;
    args.rows = static_cast<const char*>(data) + first * size_bytes(p_.dtype);
    args.dtype = p_.dtype;
    args.row_stride = strides.row;
    args.count = queries ? s.len_q : s.len_k;
    args.dim = static_cast<int>(dim);
    args.mean = mean;
    if (!queries) args.problem = &p_, args.sequence_index = index / heads, args.head_kv = index % heads;
    plan_.kernels->channel_mean(args);
  }

  void pack(int64_t index, int slot) {
    const BlockIndex at = block_at(plan_, index);
    if (!any_unsettled(at.sequence, at.head_kv)) return;
    const PackedHead head = w_.head(plan_, precision_, sizes_, at.sequence, at.head_kv);
    PackArgs args;
    args.problem = &p_, args.tensors = &t_;
    args.sequence = plan_.sequences[at.sequence].tokens;
    args.sequence_index = at.sequence, args.head_kv = at.head_kv, args.block = at.block;
    args.sizes = &sizes_, args.head = &head;
    args.scratch = w_.scratch(slot);
    plan_.kernels->pack[static_cast<int>(precision_)](args);
  }

  bool any_unsettled(int64_t sequence, int64_t head_kv) const {
    for (int64_t g = 0; g < p_.group; ++g)
      if (!plan_.head(sequence, head_kv * p_.group + g).settled) return true;
    return false;
  }

  // ---- attend

  void attend() {
    parallel_.for_each(plan_.items, [&](int64_t i, int slot) { attend_item(item_at(plan_, i), slot); });
    if (plan_.most_parts > 1) parallel_.for_each(plan_.tiles, [&](int64_t i, int) { merge_tile(i); });
  }

  AttendArgs args_for(const Item& item, const PackedHead& head, const Row* rows, int count) const {
    AttendArgs args;
    args.problem = &p_, args.tensors = &t_;
    args.sequence = plan_.sequences[item.sequence].tokens;
    args.sequence_index = item.sequence, args.head_kv = item.head_kv;
    args.sizes = &sizes_, args.head = &head;
    args.rows = rows, args.count = count;
    args.out_dtype = p_.out_dtype;
    args.mask_folded = p_.folds_mask() && !direct_;
    return args;
  }

  void attend_item(const Item& item, int slot) {
    Row rows[kMostItemRows];
    const int count = rows_of(item, rows);
    if (count == 0) return;
    const SequencePlan& s = plan_.sequences[item.sequence];
    const PackedHead head = packed_head(item);
    AttendArgs args = args_for(item, head, rows, count);
    args.block_end = s.blocks;
    if (s.parts > 1) {
      args.block_begin = item.part * plan_.part_blocks;
      args.block_end = std::min(s.blocks, args.block_begin + plan_.part_blocks);
      args.partial = w_.partial(plan_, item.tile) + item.part * count;
      args.partial_out = w_.partial_out(plan_, item.tile) + item.part * count * sizes_.value_width;
    }
    clip_to_visible(args);
    args.scratch = w_.scratch(slot);
    direct_ ? plan_.kernels->attend_directly(args) : plan_.kernels->attend[static_cast<int>(precision_)](args);
  }

  PackedHead packed_head(const Item& item) const {
    if (direct_) return {};
    return w_.head(plan_, precision_, sizes_, item.sequence, item.head_kv);
  }

  // Blocks outside of what any row sees are never looked at.
  void clip_to_visible(AttendArgs& args) const {
    if (!p_.limits_keys()) return;
    int64_t begin = args.sequence.len_k, end = 0;
    for (int r = 0; r < args.count; ++r) {
      const KeyRange range = p_.visible_keys(args.sequence, args.rows[r].query);
      if (range.begin >= range.end) continue;
      begin = std::min(begin, range.begin), end = std::max(end, range.end);
    }
    args.block_begin = std::max(args.block_begin, begin / kBlockKeys);
    args.block_end = std::min(args.block_end, (end + kBlockKeys - 1) / kBlockKeys);
  }

  void merge_tile(int64_t tile) {
    const Item item = item_of_tile(plan_, tile);
    const int64_t parts = plan_.sequences[item.sequence].parts;
    if (parts <= 1) return;
    Row rows[kMostItemRows];
    const int count = rows_of(item, rows);
    if (count == 0) return;
    const PackedHead head = packed_head(item);
    MergeArgs args{args_for(item, head, rows, count), static_cast<int>(parts)};
    args.rows.partial = w_.partial(plan_, tile);
    args.rows.partial_out = w_.partial_out(plan_, tile);
    plan_.kernels->merge(args);
  }

  // The rows of an item whose heads are not settled yet.
  int rows_of(const Item& item, Row* rows) const {
    const int64_t length = plan_.sequences[item.sequence].tokens.len_q;
    const int64_t end = std::min(length, item.first_query + plan_.item_queries);
    int count = 0;
    for (int64_t h = item.first_head; h < item.first_head + plan_.item_heads; ++h) {
      if (plan_.head(item.sequence, h).settled) continue;
      for (int64_t i = item.first_query; i < end; ++i) rows[count++] = row_at(item.sequence, h, i);
    }
    return count;
  }

  Row row_at(int64_t sequence, int64_t head, int64_t query) const {
    const Sequence& s = plan_.sequences[sequence].tokens;
    const int64_t token = s.q_begin + query;
    Row row{head, query, nullptr, nullptr};
    row.out = static_cast<char*>(t_.out) +
              (s.batch * p_.out.batch + head * p_.out.head + token * p_.out.row) * size_bytes(p_.out_dtype);
    if (t_.lse != nullptr) row.lse = t_.lse + s.batch * p_.lse.batch + head * p_.lse.head + token * p_.lse.row;
    return row;
  }

  // ---- guard

  // Some rows of every head, computed exactly, as f32.
  void take_sample() {
    quantise(Precision::exact);
    parallel_.for_each(p_.sequences * p_.heads_q, [&](int64_t h, int slot) {
      Row rows[kMostItemRows];
      const Item item{h / p_.heads_q, h % p_.heads_q / p_.group, h % p_.heads_q, 0, 0, 0};
      const int count = sampled_count(plan_, item.sequence);
      for (int k = 0; k < count; ++k) {
        const int64_t query = sampled_query(plan_, item.sequence, item.first_head, k, count);
        rows[k] = {item.first_head, query, w_.sample(plan_, h) + k * p_.dim_v, nullptr};
      }
      if (count == 0) return;
      const PackedHead head = w_.head(plan_, precision_, sizes_, item.sequence, item.head_kv);
      AttendArgs args = args_for(item, head, rows, count);
      args.block_end = plan_.sequences[item.sequence].blocks;
      args.out_dtype = DType::f32;
      clip_to_visible(args);
      args.scratch = w_.scratch(slot);
      plan_.kernels->attend[static_cast<int>(Precision::exact)](args);
    });
  }

  // Compares; settles the heads within the budget and raises the others. True if any was raised.
  bool judge() {
    parallel_.for_each(p_.sequences * p_.heads_q, [&](int64_t h, int) {
      HeadReport& report = plan_.heads[h];
      if (report.settled) return;
      const double error = sampled_error(h / p_.heads_q, h % p_.heads_q);
      if (report.raises == 0) report.first_error = error;
      report.last_error = error;
      if (error <= plan_.budget) {
        report.settled = true;
        return;
      }
      report.precision = raised(report.precision);
      ++report.raises;
      if (report.precision == Precision::exact) report.last_error = 0;
    });
    const HeadReport* const begin = plan_.heads;
    return std::any_of(begin, begin + p_.sequences * p_.heads_q, [](const HeadReport& r) { return !r.settled; });
  }

  // Relative L2 distance of the sampled rows; places where neither side is finite count as equal.
  double sampled_error(int64_t sequence, int64_t head) const {
    const int count = sampled_count(plan_, sequence);
    const float* sample = w_.sample(plan_, sequence * p_.heads_q + head);
    double difference = 0, norm = 0;
    for (int k = 0; k < count; ++k) {
      const Row row = row_at(sequence, head, sampled_query(plan_, sequence, head, k, count));
      for (int64_t c = 0; c < p_.dim_v; ++c) {
        const double want = static_cast<double>(sample[k * p_.dim_v + c]), got = element(row.out, p_.out_dtype, c);
        if (!std::isfinite(want) && !std::isfinite(got)) continue;
        difference += (got - want) * (got - want), norm += want * want;
      }
    }
    if (difference == 0) return 0;
    return norm == 0 ? std::numeric_limits<double>::infinity() : std::sqrt(difference / norm);
  }

  Plan& plan_;
  const Problem& p_;
  const Tensors& t_;
  const Workspace& w_;
  const Parallel& parallel_;
  Precision precision_ = Precision::exact;
  bool direct_ = false;  // this pass reads K and V as they lie
  PackedSizes sizes_;
};

}  // namespace

void run_plan(Plan& plan, const Tensors& tensors, const Workspace& workspace, const Parallel& parallel) {
  Run(plan, tensors, workspace, parallel).run();
}

}  // namespace clary
