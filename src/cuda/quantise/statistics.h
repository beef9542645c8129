// First launch: per channel, the sum of K (and of Q for INT4), and the sum and extremes of V.
//
// grid (chunks, sequences x heads, role: 0 K, 1 V, 2 Q), 256 threads. Each thread sums 8 channels over every
// 32nd, 16th or 8th token of its chunk (RowLanes); the block adds up in shared memory, in a fixed order. Reads K and V
// once: the kernel is bound by memory. Numbers that are not finite are left out: any vector may be subtracted.
#pragma once

#include "cuda/quantise/elements.h"

namespace clary::cuda {

template <class M>
class Statistics {
 public:
  static CLARY_DEVICE void run(const QuantiseParams& p, uint32_t shared) {
    const int role = static_cast<int>(M::block_z());
    const int heads = role == 2 ? p.shape.heads_q : p.shape.heads_kv;
    const int64_t pair = M::block_y();
    if (pair >= int64_t{p.shape.sequences} * heads) return;
    const Span span = p.shape.span(pair / heads);
    Sums sums;
    add_tokens(p, role, span, static_cast<int>(pair % heads), sums);
    reduce(p, role, pair * kChunks + M::block_x(), shared, sums);
  }

 private:
  struct Sums {
    float sum[8] = {}, least[8] = {}, largest[8] = {};
  };

  static CLARY_DEVICE void add_tokens(const QuantiseParams& p, int role, const Span& span, int head, Sums& sums) {
    const RowLanes lanes(M::thread(), p.shape.dim);
    const InputParams& in = role == 0 ? p.k : role == 1 ? p.v : p.q;
    const int64_t length = role == 2 ? span.len_q : span.len_k, begin = role == 2 ? span.q_begin : span.k_begin;
    const int64_t chunk = ceil_div(length, kChunks), first = chunk * M::block_x();
    const int64_t end = smaller(first + chunk, length);
    const int dim = role == 1 ? p.shape.dim_v : p.shape.dim_qk;
#pragma unroll
    for (int i = 0; i < 8; ++i) sums.least[i] = __builtin_inff(), sums.largest[i] = -__builtin_inff();
      // Four loads of 16 bytes in flight per thread.
#pragma unroll 4
    for (int64_t t = first + lanes.row; t < end; t += lanes.rows) {
      float x[8];
      load_8<M>(token(in, p.type, span, begin, head, t), p.type, in.vectors, 8 * lanes.lane, dim, x);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (!is_finite<M>(x[i])) continue;
        sums.sum[i] += x[i];
        sums.least[i] = -M::maximum(-sums.least[i], -x[i]);
        sums.largest[i] = M::maximum(sums.largest[i], x[i]);
      }
    }
  }

  // Over the rows of the block, one thread per channel.
  static CLARY_DEVICE void reduce(const QuantiseParams& p, int role, int64_t chunk, uint32_t shared, const Sums& sums) {
    const RowLanes lanes(M::thread(), p.shape.dim);
    const int pitch = 8 * lanes.lanes;
    const uint32_t quantity = 4u * static_cast<uint32_t>(lanes.rows * pitch);
    const uint32_t mine = shared + 4u * static_cast<uint32_t>(lanes.row * pitch + 8 * lanes.lane);
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      M::store_shared(mine + 4 * i, M::bits(sums.sum[i]));
      M::store_shared(mine + quantity + 4 * i, M::bits(sums.least[i]));
      M::store_shared(mine + 2 * quantity + 4 * i, M::bits(sums.largest[i]));
    }
    M::sync();
    for (int d = M::thread(); d < p.shape.dim; d += kQuantiseThreads) {
      float sum = 0, least = __builtin_inff(), largest = -__builtin_inff();
      for (int row = 0; row < lanes.rows; ++row) {
        const uint32_t at = shared + 4u * static_cast<uint32_t>(row * pitch + d);
        sum += M::from_bits(M::load_shared(at));
        least = -M::maximum(-least, -M::from_bits(M::load_shared(at + quantity)));
        largest = M::maximum(largest, M::from_bits(M::load_shared(at + 2 * quantity)));
      }
      float* const to = role == 0 ? p.k_sum : role == 1 ? p.v_sum : p.q_sum;
      to[chunk * p.shape.dim + d] = sum;
      if (role != 1) continue;
      p.v_least[chunk * p.shape.dim + d] = least;
      p.v_largest[chunk * p.shape.dim + d] = largest;
    }
  }
};

}  // namespace clary::cuda
