// Where sequences and tiles lie, and which keys a tile of queries sees.
#pragma once

#include "cuda/layout/target.h"

namespace clary::cuda {

// One sequence of a (varlen) batch.
struct Span {
  int64_t batch;  // index along the tensors' batch dimension
  int64_t q_begin, k_begin;
  int32_t len_q, len_k;
};

// Shapes that all kernels share. cu_seqlens lie in device memory and the host never reads them: it only knows the
// longest lengths. Sequence s gets packed tiles from cu[s] / tile + s on, which needs no prefix sum: consecutive bases
// differ by at least ceil(length / tile).
struct Geometry {
  int32_t sequences, heads_q, heads_kv, group;  // group = heads_q / heads_kv
  int32_t len_q, len_k;                         // of the tensors
  int32_t max_len_q, max_len_k;                 // of a sequence
  int32_t dim_qk, dim_v, dim;                   // dim: what both are padded to
  int32_t tile_rows, tile_keys;
  int32_t heads_together;  // whose K and V share the L2 cache, where rows differ in length
  const int32_t* cu_q;
  const int32_t* cu_k;

  // Tiles per head in the packed arrays.
  CLARY_ANYWHERE int64_t query_tiles() const { return tiles(cu_q, len_q, tile_rows); }
  CLARY_ANYWHERE int64_t key_tiles() const { return tiles(cu_k, len_k, tile_keys); }
  CLARY_ANYWHERE int64_t query_base(int64_t s) const { return base(cu_q, s, len_q, tile_rows); }
  CLARY_ANYWHERE int64_t key_base(int64_t s) const { return base(cu_k, s, len_k, tile_keys); }

  // Whatever cu_seqlens hold, the span stays within the tensors and the lengths that the host was told.
  CLARY_ANYWHERE Span span(int64_t s) const {
    if (cu_q == nullptr) return {s, 0, 0, len_q, len_k};
    const int64_t q0 = within(cu_q[s], len_q), q1 = within(cu_q[s + 1], len_q);
    const int64_t k0 = within(cu_k[s], len_k), k1 = within(cu_k[s + 1], len_k);
    return {0, q0, k0, length(q0, q1, max_len_q), length(k0, k1, max_len_k)};
  }

 private:
  static CLARY_ANYWHERE int64_t within(int64_t x, int64_t most) { return x < 0 ? 0 : x > most ? most : x; }
  static CLARY_ANYWHERE int32_t length(int64_t from, int64_t to, int64_t most) {
    return static_cast<int32_t>(within(to - from, most));
  }
  CLARY_ANYWHERE int64_t tiles(const int32_t* cu, int64_t len, int64_t tile) const {
    return cu != nullptr ? len / tile + sequences : ceil_div(len, tile) * sequences;
  }
  CLARY_ANYWHERE int64_t base(const int32_t* cu, int64_t s, int64_t len, int64_t tile) const {
    return cu != nullptr ? within(cu[s], len) / tile + s : s * ceil_div(len, tile);
  }
};

enum class Align : uint8_t { top_left, bottom_right, offset };

// Position rules of docs/semantics.md.
struct Visibility {
  bool causal;
  Align align;
  int64_t offset;  // of Align::offset
  int64_t window_left, window_right;

  CLARY_ANYWHERE int64_t aligned(const Span& s) const {
    return align == Align::top_left ? 0 : align == Align::offset ? offset : int64_t{s.len_k} - s.len_q;
  }
};

// Keys [begin, end) of one row.
struct KeySpan {
  int32_t begin, end;
};
CLARY_ANYWHERE KeySpan visible_keys(const Visibility& v, const Span& s, int64_t row) {
  const int64_t at = row + v.aligned(s);
  int64_t begin = 0, end = s.len_k;
  if (v.causal) end = smaller(end, at + 1);
  if (v.window_left >= 0) begin = larger(begin, at - v.window_left);
  if (v.window_right >= 0) end = smaller(end, at + v.window_right + 1);
  end = larger(end, 0);
  return {static_cast<int32_t>(smaller(begin, end)), static_cast<int32_t>(end)};
}

// What rows [first, first + rows) need. Both ends of a row's span ascend with the row.
struct TileRange {
  int32_t begin, end;            // tiles with a visible key
  int32_t full_begin, full_end;  // keys that every row sees
};
CLARY_ANYWHERE TileRange tile_range(const Visibility& v, const Span& s, int64_t first, int rows, int tile_keys) {
  const int64_t last = smaller(first + rows, s.len_q) - 1;
  const KeySpan a = visible_keys(v, s, first), b = visible_keys(v, s, last);
  if (b.end <= a.begin) return {0, 0, 0, 0};
  return {a.begin / tile_keys, static_cast<int32_t>(ceil_div(b.end, tile_keys)), b.begin, a.end};
}
CLARY_ANYWHERE bool sees_all(const TileRange& range, int tile, int tile_keys) {
  return tile * tile_keys >= range.full_begin && (tile + 1) * tile_keys <= range.full_end;
}

// ---- order of the work --------------------------------------------------------------------------------------------
// All query tiles of a head run next to each other, so that its K and V stay in L2. Where rows differ in length
// (causal), the longest come first, or the last wave would be one long tile; then `heads_together` heads are taken side
// by side, as many as L2 holds (FlashAttention-3's order).
struct Work {
  int32_t tile, head, sequence;
};
CLARY_ANYWHERE Work work_item(const Geometry& g, const Visibility& v, int64_t item) {
  const int64_t tiles = ceil_div(g.max_len_q, g.tile_rows), heads = int64_t{g.heads_q} * g.sequences;
  int64_t pair = item / tiles, tile = item % tiles;
  if (v.causal) {
    const int64_t band = item / (tiles * g.heads_together), first = band * g.heads_together;
    const int64_t within = item - first * tiles, count = smaller(g.heads_together, heads - first);
    pair = first + within % count, tile = tiles - 1 - within / count;
  }
  return {static_cast<int32_t>(tile), static_cast<int32_t>(pair % g.heads_q), static_cast<int32_t>(pair / g.heads_q)};
}
CLARY_ANYWHERE int64_t work_items(const Geometry& g) {
  return ceil_div(g.max_len_q, g.tile_rows) * g.heads_q * g.sequences;
}

// What is known of a tile's mask before it is loaded.
enum class TileClass : uint8_t { skipped, partial, full };

}  // namespace clary::cuda
