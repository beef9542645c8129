// The plan: which kernels, how the work is cut, and what memory it takes. It depends on shapes and parameters alone.
#pragma once

#include "core/arena.h"
#include "kernel/args.h"

namespace clary {

// Where one sequence's blocks and items begin among those of the whole batch.
struct SequencePlan {
  Sequence tokens;
  int64_t blocks = 0;       // of 256 keys
  int64_t parts = 1;        // into which its keys are cut
  int64_t first_block = 0;  // times heads_kv: index of its first block among all packed blocks
  int64_t first_tile = 0;   // index of its first tile of rows
  int64_t first_item = 0;
};

// What happened to one query head.
struct HeadReport {
  Precision precision = Precision::exact;
  bool settled = false;  // its result is final
  int32_t raises = 0;
  double first_error = 0, last_error = 0;
};

// Whether Q K^T multiplies integers, so that means are taken off first.
constexpr bool is_integer(Precision precision) {
  return precision != Precision::exact && precision != Precision::bf16 && precision != Precision::bf16x3;
}

struct Plan {
  Problem problem;
  const KernelTable* kernels = nullptr;
  Precision start = Precision::exact;
  const char* reason = "";  // why it starts there
  double budget = 0;        // of the guard; 0 = no guard

  // Cut of the rows: a tile is item_heads query heads (of one group) x item_queries queries, at most kernels->item_rows
  // rows.
  int64_t item_heads = 1, item_queries = kItemRows;
  int64_t part_blocks = 0;  // blocks per part of the keys; 0 = keys are not cut
  int64_t blocks = 0, tiles = 0, items = 0, most_parts = 1;
  // The work in key-value heads of the longest sequence: how evenly heads can be shared out.
  double full_heads = 0;

  SequencePlan* sequences = nullptr;
  HeadReport* heads = nullptr;  // [sequences][heads_q]

  bool smooths_queries(Precision precision) const;
  // Few rows, exactly: nothing is packed.
  bool is_direct(Precision precision) const {
    return precision == Precision::exact && problem.group * problem.max_len_q <= kDirectRows;
  }
  // Key-bias arrays per key-value head: one, or one per query head of the group.
  int64_t biases(Precision precision) const;
  int64_t rows_per_tile() const { return item_heads * item_queries; }
  int64_t tiles_of(const SequencePlan& s) const;
  // Every head unsettled, at the start precision, with nothing measured.
  void reset_heads();
  const HeadReport& head(int64_t sequence, int64_t h) const { return heads[sequence * problem.heads_q + h]; }
};

// Chooses everything; the arrays come from `arena` (nullptr while measuring: then only sizes are valid).
void make_plan(const Problem& problem, const KernelTable& kernels, int threads, Arena& arena, Plan& plan);

// One part of one tile.
struct Item {
  int64_t sequence = 0, head_kv = 0, first_head = 0, first_query = 0, part = 0;
  int64_t tile = 0;  // index among all tiles
};
Item item_at(const Plan& plan, int64_t index);
// The first part of a tile.
Item item_of_tile(const Plan& plan, int64_t tile);

// One block of one key-value head.
struct BlockIndex {
  int64_t sequence = 0, head_kv = 0, block = 0;
};
BlockIndex block_at(const Plan& plan, int64_t index);

// Query k of the n that the guard samples from a head: spread evenly, jittered by a hash of (sequence, head, k).
int64_t sampled_query(const Plan& plan, int64_t sequence, int64_t head, int k, int n);
int sampled_count(const Plan& plan, int64_t sequence);

// The next precision the guard tries; exact is the last.
Precision raised(Precision precision);

}  // namespace clary
