// The tiles that a block visits: skip, full or partial is decided here, before anything is loaded.
#pragma once

#include "cuda/attention/params.h"

namespace clary::cuda {

struct TileWalk {
  TileRange range;
  const uint8_t* classes;   // of this query tile; nullptr: no mask
  const uint8_t* bad_tile;  // of this head and sequence
  bool plain;               // nothing changes the scores themselves
  int tile_keys;

  CLARY_DEVICE TileWalk(const AttentionParams& p, const Work& w, const Span& span, int64_t key_tile_base) {
    const Geometry& g = p.shape;
    tile_keys = g.tile_keys;
    range = tile_range(p.sees, span, int64_t{w.tile} * g.tile_rows, g.tile_rows, g.tile_keys);
    classes = p.mask.classes == nullptr ? nullptr
                                        : p.mask.classes + w.sequence * p.mask.class_batch +
                                              w.head * p.mask.class_head + w.tile * p.mask.class_query;
    bad_tile = p.bad_tile + key_tile_base;
    plain = !changes_scores(p);
  }
  // The first tile from `tile` on that is not skipped; range.end when there is none.
  CLARY_DEVICE int next(int tile) const {
    if (classes != nullptr)
      while (tile < range.end && classes[tile] == static_cast<uint8_t>(TileClass::skipped)) ++tile;
    return tile;
  }
  // How many tiles from `tile` < range.end on are full, up to 32. A warp looks at them together, one per lane: looking
  // at each in its turn would put a load of the flags into every turn of the main loop.
  template <class M>
  CLARY_DEVICE int full_run(int tile) const {
    const uint32_t full = M::ballot(is_full(tile + M::thread() % 32));
    return full == ~0u ? 32 : M::trailing_zeros(~full);
  }

 private:
  CLARY_DEVICE bool is_full(int tile) const {
    return tile < range.end && plain && sees_all(range, tile, tile_keys) && bad_tile[tile] == 0 &&
           (classes == nullptr || classes[tile] == static_cast<uint8_t>(TileClass::full));
  }
};

// One work item: a tile of queries of a head, decoded alike by all who work on it.
struct Item {
  Work work;
  Span span;
  int64_t key_base, query_tile;
  TileWalk walk;
  int first;  // tile; walk.range.end: none

  CLARY_DEVICE Item(const AttentionParams& p, int64_t index)
      : work(work_item(p.shape, p.sees, index)),
        span(p.shape.span(work.sequence)),
        key_base((work.head / p.shape.group) * p.shape.key_tiles() + p.shape.key_base(work.sequence)),
        query_tile(work.head * p.shape.query_tiles() + p.shape.query_base(work.sequence) + work.tile),
        walk(p, work, span, key_base),
        first(walk.next(walk.range.begin)) {}
  // The first tile in k_bias, which has the heads of queries where other arrays have those of keys.
  CLARY_DEVICE int64_t bias_base(const Geometry& g) const {
    return work.head * g.key_tiles() + g.key_base(work.sequence);
  }
  CLARY_DEVICE bool is_beyond(int rows) const { return work.tile * rows >= span.len_q; }
  CLARY_DEVICE bool has_tiles() const { return first < walk.range.end; }
};

}  // namespace clary::cuda
