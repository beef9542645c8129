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
  CLARY_DEVICE bool is_full(int tile) const {
    return plain && sees_all(range, tile, tile_keys) && bad_tile[tile] == 0 &&
           (classes == nullptr || classes[tile] == static_cast<uint8_t>(TileClass::full));
  }
};

}  // namespace clary::cuda
