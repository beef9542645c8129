// Third launch, where there is a mask: which of its tiles hide everything, and which nothing.
//
// grid (key tiles, query tiles, batches x heads of the mask), 128 threads, neighbours along the keys. The mask is read
// once, as it lies. Lengths are the longest of the batch: a tile may be called partial that is full for a shorter
// sequence, never the other way round.
#pragma once

#include "cuda/attention/rows.h"
#include "cuda/quantise/params.h"

namespace clary::cuda {

template <class M>
CLARY_DEVICE void classify(const ClassParams& p) {
  const int64_t key_tile = M::block_x(), query_tile = M::block_y(), plane = M::block_z();
  const int64_t base = plane / p.heads * p.mask.batch + plane % p.heads * p.mask.head;
  const int64_t rows = p.mask.query == 0 ? 1 : smaller(p.tile_rows, p.len_q - query_tile * p.tile_rows);
  const int64_t keys = smaller(p.tile_keys, p.len_k - key_tile * p.tile_keys);
  bool hides = false, shows = false;
  for (int64_t i = M::thread(); i < rows * keys; i += kClassThreads) {
    const int64_t row = query_tile * p.tile_rows + i / keys, key = key_tile * p.tile_keys + i % keys;
    const int64_t at = base + row * p.mask.query + key * p.mask.key;
    if (p.mask.type == Type::boolean) {
      const bool seen = static_cast<const uint8_t*>(p.mask.data)[at] != 0;
      hides |= !seen, shows |= seen;
    } else {
      const float x = mask_element<M>(p.mask.data, p.mask.type, at);
      hides |= x != 0, shows |= x != -__builtin_inff();
    }
  }
  hides = M::sync_or(hides);
  shows = M::sync_or(shows);
  if (M::thread() != 0) return;
  const TileClass result = !shows ? TileClass::skipped : hides ? TileClass::partial : TileClass::full;
  p.classes[p.mask.class_batch * (plane / p.heads) + p.mask.class_head * (plane % p.heads) +
            p.mask.class_query * query_tile + key_tile] = static_cast<uint8_t>(result);
}

}  // namespace clary::cuda
