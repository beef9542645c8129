#include "plan/plan.h"

#include <algorithm>
#include <cmath>

namespace clary {
namespace {

// Smoothing the queries costs one f32 product row per head and key: under 64 rows more than a tenth of QK^T itself, and
// the mean of few rows says little.
constexpr int64_t kSmoothQueries = 64;
// With up to so many rows per key-value head there is too little to share out, and the keys are cut instead.
constexpr int64_t kFewRows = 64;
// A part has at least 4 blocks (1024 keys): below, merging and starting cost more than a part computes.
constexpr int64_t kPartBlocks = 4, kMostParts = 64;
// CLARY_AUTO: below so many rows per key-value head, keys, or scores, quantising and the guard's sample cost more than
// INT8 saves (measured on Zen 4 with AVX-512 and on Zen 3 with AVX2, head dims 32 to 128: 128 x 128 scores lose, on
// Zen 3 by 6 to 8 %; 192 x 192 win by 4 to 8 %, 257 x 257 and 4096 x 77 by more).
constexpr int64_t kAutoRows = 32, kAutoKeys = 64, kAutoScores = 32768;
// CLARY_AUTO's budget unless the caller sets one: INT8 on Gaussian data has 1.5 %.
constexpr double kAutoBudget = 0.02;
// Items per thread that keep the threads evenly busy, and the share of the time that they may wait for the last ones.
// On AVX2 items of 64 rows are as fast as those of 128, and items of 32 up to 5 % slower.
constexpr int64_t kItemsPerThread = 8;
constexpr double kMostIdle = 0.03;

void choose_precision(Plan& plan) {
  const Problem& p = plan.problem;
  plan.budget = p.guard;
  if (plan.is_direct(Precision::exact)) {
    plan.start = Precision::exact;
    plan.reason = "few rows: K and V are read once, as they lie, and nothing is rounded";
    return;
  }
  if (p.precision != CLARY_AUTO) {
    plan.start = static_cast<Precision>(p.precision);
    plan.reason = "as asked";
    if (plan.start == Precision::bf16x3 && !plan.kernels->sizes(plan.start, 1, 1).tiles) {
      plan.start = Precision::exact;
      plan.reason = "bf16x3 as f32, which is exact and no slower without a matrix engine";
    }
    return;
  }
  const int64_t rows = p.group * p.max_len_q;
  if (rows < kAutoRows || p.max_len_k < kAutoKeys || rows * p.max_len_k < kAutoScores) {
    plan.start = Precision::exact;
    plan.reason = "auto: too little work for quantising to pay";
    return;
  }
  plan.start = Precision::int8;
  plan.reason = "auto: int8, guarded: heads whose sampled error exceeds the budget are raised";
  if (plan.budget == 0) plan.budget = kAutoBudget;
}

double count_full_heads(const Problem& p) {
  double all = 0, most = 0;
  for (int64_t i = 0; i < p.sequences; ++i) {
    const Sequence s = p.sequence(i);
    const double scores = static_cast<double>(s.len_q) * static_cast<double>(s.len_k);
    all += scores, most = std::max(most, scores);
  }
  return most > 0 ? all / most * static_cast<double>(p.heads_kv) : 0;
}

// Share of the time that threads wait for each other when all items take equally long: the last round may not be full.
double idle_share(int64_t items, int64_t threads) {
  const int64_t rounds = (items + threads - 1) / threads;
  return 1 - static_cast<double>(items) / static_cast<double>(rounds * threads);
}

// How rows are grouped does not change any bit of the result: units of 16 rows stay the same.
void choose_tiles(Plan& plan, int threads) {
  const Problem& p = plan.problem;
  plan.item_heads = 1;
  plan.item_queries = plan.kernels->item_rows;
  if (p.max_len_q <= kFewRows && p.max_len_q > 0) {
    plan.item_queries = p.max_len_q;
    for (int64_t h = 1; h <= p.group && h * p.max_len_q <= plan.kernels->item_rows; ++h)
      if (p.group % h == 0) plan.item_heads = h;
    return;
  }
  const double heads = plan.full_heads * static_cast<double>(p.group);
  const auto too_few = [&] {
    const int64_t of_a_head = (p.max_len_q + plan.item_queries - 1) / plan.item_queries;
    const auto items = static_cast<int64_t>(heads * static_cast<double>(of_a_head));
    return items < kItemsPerThread * threads || idle_share(items, threads) > kMostIdle;
  };
  while (plan.item_queries > 2 * kUnitRows && too_few()) plan.item_queries /= 2;
}

// Depends on the problem alone, since merging rounds: the same bits for any number of threads.
void choose_parts(Plan& plan) {
  const Problem& p = plan.problem;
  const int64_t blocks = (p.max_len_k + kBlockKeys - 1) / kBlockKeys;
  plan.part_blocks = 0;
  if (p.group * p.max_len_q > kFewRows || blocks < 2 * kPartBlocks) return;
  plan.part_blocks = std::max(kPartBlocks, (blocks + kMostParts - 1) / kMostParts);
}

uint64_t hash(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The last sequence whose first block, tile or item is not beyond `index`.
const SequencePlan* sequence_of(const Plan& plan, int64_t index, int64_t SequencePlan::*first) {
  const SequencePlan* const begin = plan.sequences;
  return std::upper_bound(begin, begin + plan.problem.sequences, index,
                          [first](int64_t i, const SequencePlan& x) { return i < x.*first; }) -
         1;
}

}  // namespace

bool Plan::smooths_queries(Precision precision) const {
  return is_integer(precision) && problem.max_len_q >= kSmoothQueries;
}

int64_t Plan::biases(Precision precision) const {
  return smooths_queries(precision) || (problem.folds_mask() && problem.mask.head != 0) ? problem.group : 1;
}

void Plan::reset_heads() {
  const double unknown = std::nan("");
  std::fill_n(heads, problem.sequences * problem.heads_q, HeadReport{start, false, 0, unknown, unknown});
}

int64_t Plan::tiles_of(const SequencePlan& s) const {
  const int64_t query_tiles = (s.tokens.len_q + item_queries - 1) / item_queries;
  return problem.heads_kv * (problem.group / item_heads) * query_tiles;
}

void make_plan(const Problem& problem, const KernelTable& kernels, int threads, Arena& arena, Plan& plan) {
  plan.problem = problem;
  plan.kernels = &kernels;
  choose_precision(plan);
  plan.full_heads = count_full_heads(problem);
  choose_tiles(plan, threads);
  choose_parts(plan);
  plan.sequences = arena.take<SequencePlan>(problem.sequences);
  plan.heads = arena.take<HeadReport>(problem.sequences * problem.heads_q);
  plan.blocks = plan.tiles = plan.items = 0;
  plan.most_parts = 1;
  for (int64_t s = 0; s < problem.sequences; ++s) {
    SequencePlan sequence;
    sequence.tokens = problem.sequence(s);
    sequence.blocks = (sequence.tokens.len_k + kBlockKeys - 1) / kBlockKeys;
    if (plan.part_blocks > 0)
      sequence.parts = std::max<int64_t>(1, (sequence.blocks + plan.part_blocks - 1) / plan.part_blocks);
    sequence.first_block = plan.blocks, sequence.first_tile = plan.tiles, sequence.first_item = plan.items;
    plan.blocks += sequence.blocks;
    plan.tiles += plan.tiles_of(sequence);
    plan.items += plan.tiles_of(sequence) * sequence.parts;
    plan.most_parts = std::max(plan.most_parts, sequence.parts);
    if (plan.sequences != nullptr) plan.sequences[s] = sequence;
  }
}

// Within a sequence: key-value head, then tiles of queries from the last (longest under causality) to the first, then
// heads of the group, then parts. Neighbouring items share K and V in the cache.
Item item_at(const Plan& plan, int64_t index) {
  const SequencePlan* const s = sequence_of(plan, index, &SequencePlan::first_item);
  const int64_t head_tiles = plan.problem.group / plan.item_heads;
  const int64_t query_tiles = (s->tokens.len_q + plan.item_queries - 1) / plan.item_queries;
  int64_t rest = index - s->first_item;
  Item item;
  item.sequence = s - plan.sequences;
  item.part = rest % s->parts;
  rest /= s->parts;
  item.tile = s->first_tile + rest;
  const int64_t head_tile = rest % head_tiles;
  rest /= head_tiles;
  item.first_query = (query_tiles - 1 - rest % query_tiles) * plan.item_queries;
  item.head_kv = rest / query_tiles;
  item.first_head = item.head_kv * plan.problem.group + head_tile * plan.item_heads;
  return item;
}

Item item_of_tile(const Plan& plan, int64_t tile) {
  const SequencePlan& s = *sequence_of(plan, tile, &SequencePlan::first_tile);
  return item_at(plan, s.first_item + (tile - s.first_tile) * s.parts);
}

BlockIndex block_at(const Plan& plan, int64_t index) {
  const int64_t heads = plan.problem.heads_kv;
  const SequencePlan* const s = sequence_of(plan, index / heads, &SequencePlan::first_block);
  const int64_t rest = index - s->first_block * heads;
  return {s - plan.sequences, rest / s->blocks, rest % s->blocks};
}

int sampled_count(const Plan& plan, int64_t sequence) {
  return static_cast<int>(std::min<int64_t>(plan.problem.guard_rows, plan.sequences[sequence].tokens.len_q));
}

int64_t sampled_query(const Plan& plan, int64_t sequence, int64_t head, int k, int n) {
  const int64_t length = plan.sequences[sequence].tokens.len_q;
  const int64_t begin = length * k / n, end = length * (k + 1) / n;
  const uint64_t seed =
      hash(static_cast<uint64_t>(sequence * plan.problem.heads_q + head) * 64 + static_cast<uint64_t>(k));
  return begin + static_cast<int64_t>(seed % static_cast<uint64_t>(end - begin));
}

Precision raised(Precision precision) {
  switch (precision) {
    case Precision::int4: return Precision::int8;
    case Precision::int8: return Precision::int8_f16;
    case Precision::int8_f16:
    case Precision::bf16:
    case Precision::bf16x3:
    case Precision::exact: return Precision::exact;
  }
  return Precision::exact;
}

}  // namespace clary
