// The attention kernels there are: (operand types, padded head dim, shape of the block).
//
// A head dim is served by the next larger instance; the padding is zeros. Six dims (by wgmma five, from 64 on) keep the
// compile time of all architectures within minutes. What is lost is at most half of the products below 64 (dim 33), a
// third above (dim 65 on 96, 129 on 192), and nothing at the dims themselves.
//
// Everything else (masks, causality, softcap, GQA, varlen, types of the output) is a branch at run time that full tiles
// do not take, so it costs no instance.
#pragma once

#include "cuda/attention/params.h"
#include "cuda/layout/image.h"

namespace clary::cuda {

// What the host has to know of a kernel.
struct Instance {
  Element qk, pv;
  int dim, tile_rows, tile_keys, threads, shared_bytes;
  bool persistent;  // one block per SM takes work items in turn
};

// Strips of 16 rows per warp, and keys per tile. 255 registers and 99 KB of shared memory bound both:
// dims 192 and 256 have one strip (up to 128 registers of O), and tiles of 32 keys where V^T has 16 bits (up to 32 KB
// per 64 keys).
CLARY_ANYWHERE int mma_strips(int dim) { return dim <= 128 ? 2 : 1; }
CLARY_ANYWHERE int mma_keys(Element pv, int dim) { return dim > 128 && bits_of(pv) == 16 ? 32 : 64; }

template <class C>
constexpr Instance describe_instance(bool persistent) {
  return {C::kQk, C::kPv, C::kDim, C::kRows, C::kKeys, C::kThreads, C::kSharedBytes, persistent};
}

}  // namespace clary::cuda
