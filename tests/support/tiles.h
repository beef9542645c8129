// The tiles of a problem, counted entry by entry from the definition of what a query sees.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "support/problem.h"

namespace clary::test {

using support::Problem;
using support::Tensors;

constexpr int64_t kTileRows = 16, kTileKeys = 256;  // as clary_plan_info says

struct Tiles {
  int64_t skipped = 0, full = 0, partial = 0;
  bool operator==(const Tiles&) const = default;
};

// May query i of (batch, head) see key j? From the definition, without scores.
inline bool visible(const Problem& p, const Tensors& t, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t a = i + support::alignment_offset(p, b);
  if (p.causal != CLARY_NOT_CAUSAL && j > a) return false;
  if (p.window_left >= 0 && j < a - p.window_left) return false;
  if (p.window_right >= 0 && j > a + p.window_right) return false;
  if (t.mask.empty()) return true;
  const double mask = t.mask.at(b, h, i, j);
  return t.mask.dtype() == "bool" ? mask != 0 : mask != -std::numeric_limits<double>::infinity();
}

inline Tiles count_tiles(const Problem& p, const Tensors& t) {
  Tiles tiles;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t h = 0; h < p.heads_q; ++h)
      for (int64_t i0 = 0; i0 < support::length_q(p, b); i0 += kTileRows)
        for (int64_t j0 = 0; j0 < support::length_k(p, b); j0 += kTileKeys) {
          int64_t seen = 0, all = 0;
          for (int64_t i = i0; i < std::min(i0 + kTileRows, support::length_q(p, b)); ++i)
            for (int64_t j = j0; j < std::min(j0 + kTileKeys, support::length_k(p, b)); ++j, ++all)
              seen += visible(p, t, b, h, i, j);
          ++(seen == 0 ? tiles.skipped : seen == all ? tiles.full : tiles.partial);
        }
  return tiles;
}

}  // namespace clary::test
