// Second launch: rounds and writes images (layout/image.h).
//
// grid (tiles, sequences x heads, role: 0 Q, 1 K and V), 256 threads; a block makes one tile of Q, or one of K and one
// of V^T with the same keys. K and V are read twice within a block, the second time from L1 or L2; V^T is turned in
// shared memory and leaves as whole 16-byte words.
//
// Rows beyond a sequence's end are written as zeros with scale 0, for the products read them. A key that is not finite
// is packed as zeros and flagged; a query that is not finite gets the scale NaN.
#pragma once

#include "cuda/layout/fragments.h"
#include "cuda/layout/image.h"
#include "cuda/quantise/elements.h"

namespace clary::cuda {

// A row of numbers this small is all zeros for every purpose; its reciprocal would overflow.
inline constexpr float kNothing = 1e-30f;

// Q: subtract the mean (INT4), one scale per row, sign of the softmax scale folded in. A row's lanes lie in one warp,
// so its maximum and its product with the mean of K are shuffles.
template <class M>
class PackQueries {
 public:
  static CLARY_DEVICE void run(const QuantiseParams& p, uint32_t shared) {
    const Geometry& g = p.shape;
    const int64_t pair = M::block_y(), tile = M::block_x();
    if (pair >= int64_t{g.sequences} * g.heads_q) return;
    const int64_t sequence = pair / g.heads_q;
    const int head = static_cast<int>(pair % g.heads_q);
    const Span span = g.span(sequence);
    if (tile * g.tile_rows >= span.len_q) return;
    const PackShared at(shared, p);
    if (smooths(p)) load_means(p, span, pair, sequence * g.heads_kv + head / g.group, at);
    M::sync();
    const int64_t packed = head * g.query_tiles() + g.query_base(sequence) + tile;
    const RowLanes lanes(M::thread(), g.dim);
    for (int row = lanes.row; row < g.tile_rows; row += lanes.rows)
      pack_row(p, span, head, tile * g.tile_rows + row, packed, row, lanes, at);
  }

 private:
  // The mean of K, for what smoothing takes from a row's scores, and of Q (in v_centre's place), for INT4.
  static CLARY_DEVICE void load_means(const QuantiseParams& p, const Span& span, int64_t pair, int64_t kv,
                                      const PackShared& at) {
    for (int d = M::thread(); d < p.shape.dim; d += kQuantiseThreads) {
      const float k = span.len_k > 0 ? add_chunks(p.k_sum, kv, p.shape.dim, d) / static_cast<float>(span.len_k) : 0;
      const float q = p.smooth_q ? add_chunks(p.q_sum, pair, p.shape.dim, d) / static_cast<float>(span.len_q) : 0;
      M::store_shared(at.k_mean + 4 * static_cast<uint32_t>(d), M::bits(k));
      M::store_shared(at.v_centre + 4 * static_cast<uint32_t>(d), M::bits(q));
    }
  }

  // One row, by its 8, 16 or 32 lanes. The product with the mean of K is what smoothing K takes from every score of
  // the row: LSE and softcap need it back.
  static CLARY_DEVICE void pack_row(const QuantiseParams& p, const Span& span, int head, int64_t row, int64_t tile,
                                    int in_tile, const RowLanes& lanes, const PackShared& at) {
    const Geometry& g = p.shape;
    const int d = 8 * lanes.lane;
    float x[8] = {};
    if (row < span.len_q)
      load_8<M>(token(p.q, p.type, span, span.q_begin, head, row), p.type, p.q.vectors, d, g.dim_qk, x);
    const int row_bytes = qk_row_bytes(p.qk, g.dim);
    uint8_t* const image = p.q_image + tile * g.tile_rows * row_bytes;
    const float sign = p.softmax_scale < 0 ? -1.0f : 1.0f;  // scales of rows are positive
    if (!smooths(p)) {
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] *= sign;
      store_8<M>(image, g.tile_rows, row_bytes, in_tile, d, p.qk, x);
      return;
    }
    float dot = 0, largest = 0;
    int bad = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (d + i >= g.dim_qk) break;
      const uint32_t channel = 4 * static_cast<uint32_t>(d + i);
      dot = M::fma(x[i], M::from_bits(M::load_shared(at.k_mean + channel)), dot);
      bad |= !is_finite<M>(x[i]);
      if (row < span.len_q) x[i] -= M::from_bits(M::load_shared(at.v_centre + channel));
      largest = M::maximum(largest, magnitude<M>(x[i]));
    }
    for (int far = lanes.lanes / 2; far > 0; far /= 2) {
      largest = M::maximum(largest, M::shuffle_xor(largest, far));
      dot += M::shuffle_xor(dot, far);
      bad |= M::shuffle_xor(bad, far);
    }
    const float factor = bad || largest < kNothing ? 0 : sign * p.q_levels / largest;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = bad ? 0 : x[i] * factor;
    store_8<M>(image, g.tile_rows, row_bytes, in_tile, d, p.qk, x);
    if (lanes.lane != 0) return;
    const float octaves = p.softmax_scale * kLog2E;
    p.q_scale[tile * g.tile_rows + in_tile] = bad                  ? __builtin_nanf("")
                                              : largest < kNothing ? 0
                                                                   : largest / p.q_levels * (sign * octaves);
    p.q_shift[tile * g.tile_rows + in_tile] = dot * octaves;
  }
};

// K and V of the same keys, for both need to know which keys are not finite.
template <class M>
class PackKeys {
 public:
  static CLARY_DEVICE void run(const QuantiseParams& p, uint32_t shared) {
    const Geometry& g = p.shape;
    const int64_t pair = M::block_y(), tile = M::block_x();
    if (pair >= int64_t{g.sequences} * g.heads_kv) return;
    Block b{pair / g.heads_kv, static_cast<int>(pair % g.heads_kv), pair, tile * g.tile_keys, 0};
    const Span span = g.span(b.sequence);
    if (b.first > 0 && b.first >= span.len_k) return;
    b.packed = b.head * g.key_tiles() + g.key_base(b.sequence) + tile;
    const PackShared at(shared, p);
    load_channels(p, span, b, at);
    for (int i = M::thread(); i < kMostTileKeys + kKeyGroups; i += kQuantiseThreads)
      M::store_shared(at.groups + 4 * static_cast<uint32_t>(i), 0);
    M::sync();
    if (b.first >= span.len_k) return;  // no keys at all: there are factors of channels, but no tiles
    survey(p, span, b, at);
    M::sync();
    pack_keys(p, span, b, at);
    pack_values(p, span, b, at);
    if (p.smooth_q) add_bias(p, span, b, at);
  }

 private:
  struct Block {
    int64_t sequence;
    int head;
    int64_t pair, first, packed;  // first: key in the sequence; packed: tile in the packed arrays
  };

  static CLARY_DEVICE float shared_float(uint32_t base, int i) {
    return M::from_bits(M::load_shared(base + 4 * static_cast<uint32_t>(i)));
  }

  // Mean of K, centre and scale of V per channel. The largest distance from the centre is known from the extremes, so
  // a constant or empty channel has the scale 0 and comes back exactly, as its centre.
  static CLARY_DEVICE void load_channels(const QuantiseParams& p, const Span& span, const Block& b,
                                         const PackShared& at) {
    const int dim = p.shape.dim;
    const float top = v_top(p), count = static_cast<float>(span.len_k > 0 ? span.len_k : 1);
    for (int d = M::thread(); d < dim; d += kQuantiseThreads) {
      float mean = 0, centre = 0, scale = 1, factor = 1;
      if (top > 0) {
        float least = __builtin_inff(), largest = -__builtin_inff();
        for (int chunk = 0; chunk < kChunks; ++chunk) {
          const int64_t i = (b.pair * kChunks + chunk) * dim + d;
          least = -M::maximum(-least, -p.v_least[i]);
          largest = M::maximum(largest, p.v_largest[i]);
        }
        mean = add_chunks(p.k_sum, b.pair, dim, d) / count;
        centre = largest == least ? least : add_chunks(p.v_sum, b.pair, dim, d) / count;
        if (!(largest >= least)) centre = largest = least = 0;  // nothing finite
        const float distance = M::maximum(largest - centre, centre - least);
        factor = distance < kNothing ? 0 : top / distance;
        scale = distance < kNothing ? 0 : distance / top;
      }
      const uint32_t channel = 4 * static_cast<uint32_t>(d);
      M::store_shared(at.k_mean + channel, M::bits(mean));
      M::store_shared(at.v_centre + channel, M::bits(centre));
      M::store_shared(at.v_factor + channel, M::bits(factor));
      if (b.first == 0) p.v_scale[b.pair * dim + d] = scale, p.v_centre[b.pair * dim + d] = centre;
    }
  }

  // Eight channels of a key, less the mean. Padded channels stay 0: they must add nothing to a product.
  static CLARY_DEVICE void load_key(const QuantiseParams& p, const Span& span, const Block& b, int key, int d,
                                    const PackShared& at, float (&x)[8]) {
    load_8<M>(token(p.k, p.type, span, span.k_begin, b.head, b.first + key), p.type, p.k.vectors, d, p.shape.dim_qk, x);
    if (!smooths(p)) return;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (d + i < p.shape.dim_qk) x[i] -= shared_float(at.k_mean, d + i);
  }

  // Maxima of the four groups, and which keys are not finite in K or V.
  static CLARY_DEVICE void survey(const QuantiseParams& p, const Span& span, const Block& b, const PackShared& at) {
    const RowLanes lanes(M::thread(), p.shape.dim);
    bool any = false;
    for (int key = lanes.row; key < p.shape.tile_keys; key += lanes.rows) {
      if (b.first + key >= span.len_k) break;
      const int d = 8 * lanes.lane;
      float k[8], v[8], largest = 0;
      load_key(p, span, b, key, d, at, k);
      load_8<M>(token(p.v, p.type, span, span.k_begin, b.head, b.first + key), p.type, p.v.vectors, d, p.shape.dim_v,
                v);
      bool bad = false;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        // 16-bit products carry a K that is not finite by themselves.
        bad |= (smooths(p) && !is_finite<M>(k[i])) || !is_finite<M>(v[i]);
        if (is_finite<M>(k[i])) largest = M::maximum(largest, magnitude<M>(k[i]));
      }
      const uint32_t group = 4 * static_cast<uint32_t>(group_of_key(key));
      if (smooths(p)) M::maximum_shared(at.groups + group, M::bits(magnitude<M>(largest)));
      if (bad) M::maximum_shared(at.bad + 4 * static_cast<uint32_t>(key), 1);
      any |= bad;
    }
    any = M::sync_or(any);
    if (M::thread() == 0) p.bad_tile[b.packed] = any;
  }

  // Rounds with the scale of the key's group. Keys beyond the end are zeros: their scores are hidden, but products
  // are made.
  static CLARY_DEVICE void pack_keys(const QuantiseParams& p, const Span& span, const Block& b, const PackShared& at) {
    const Geometry& g = p.shape;
    const RowLanes lanes(M::thread(), g.dim);
    const int row_bytes = qk_row_bytes(p.qk, g.dim);
    uint8_t* const image = p.k_image + b.packed * g.tile_keys * row_bytes;
    for (int key = lanes.row; key < g.tile_keys; key += lanes.rows) {
      float x[8] = {};
      const bool bad = M::load_shared(at.bad + 4 * static_cast<uint32_t>(key)) != 0;
      if (b.first + key < span.len_k) load_key(p, span, b, key, 8 * lanes.lane, at, x);
      if (smooths(p)) {
        const float largest = shared_float(at.groups, group_of_key(key));
        const float factor = largest < kNothing ? 0 : p.k_levels / largest;
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = bad ? 0 : x[i] * factor;
      }
      store_8<M>(image, g.tile_keys, row_bytes, key, 8 * lanes.lane, p.qk, x);
      if (lanes.lane == 0) p.bad_key[b.packed * g.tile_keys + key] = bad;
    }
    if (M::thread() < kKeyGroups && smooths(p)) {
      const float largest = shared_float(at.groups, M::thread());
      p.k_scale[b.packed * kKeyGroups + M::thread()] = largest < kNothing ? 0 : largest / p.k_levels;
    }
  }

  // V^T. Writing it as it is read would scatter single bytes over rows that are far apart; so it is turned in shared
  // memory. Four neighbouring slots of V^T x 8 channels per thread and turn: words of four bytes, or two of two halves.
  static CLARY_DEVICE void pack_values(const QuantiseParams& p, const Span& span, const Block& b,
                                       const PackShared& at) {
    const Geometry& g = p.shape;
    const RowLanes lanes(M::thread(), g.dim);
    const int row_bytes = g.tile_keys * bits_of(p.pv) / 8, d = 8 * lanes.lane;
    for (int quad = lanes.row; d < g.dim && quad < g.tile_keys / 4; quad += lanes.rows) {
      float x[4][8] = {};
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int64_t key = b.first + key_of_slot(4 * quad + s, p.pv);
        if (key >= span.len_k) continue;
        load_8<M>(token(p.v, p.type, span, span.k_begin, b.head, key), p.type, p.v.vectors, d, g.dim_v, x[s]);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float v = is_finite<M>(x[s][i]) && d + i < g.dim_v ? x[s][i] - shared_float(at.v_centre, d + i) : 0;
          x[s][i] = v * shared_float(at.v_factor, d + i);
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint32_t to = at.image + image_offset(g.dim, row_bytes, d + i, quad * bits_of(p.pv) / 2);
        if constexpr (M::kHasE4m3)
          if (p.pv == Element::e4m3) {
            M::store_shared(to, M::e4m3x4(x[0][i], x[1][i], x[2][i], x[3][i]));
            continue;
          }
        M::store_shared(to, pair_of<M>(x[0][i], x[1][i], p.pv));
        M::store_shared(to + 4, pair_of<M>(x[2][i], x[3][i], p.pv));
      }
    }
    M::sync();
    const int bytes = g.dim * row_bytes;
    uint8_t* const image = p.v_image + b.packed * bytes;
    for (int i = M::thread() * 16; i < bytes; i += kQuantiseThreads * 16)
      *reinterpret_cast<Words*>(image + i) = M::load_shared_16(at.image + static_cast<uint32_t>(i));
  }

  // What subtracting the mean of Q takes from the scores of each key, for every query head of the group.
  static CLARY_DEVICE void add_bias(const QuantiseParams& p, const Span& span, const Block& b, const PackShared& at) {
    const Geometry& g = p.shape;
    const RowLanes lanes(M::thread(), g.dim);
    const int64_t in_head = b.packed - b.head * g.key_tiles();
    for (int h = b.head * g.group; h < (b.head + 1) * g.group; ++h) {
      M::sync();
      for (int d = M::thread(); d < g.dim; d += kQuantiseThreads) {
        const float sum = add_chunks(p.q_sum, b.sequence * g.heads_q + h, g.dim, d);
        M::store_shared(at.v_centre + 4 * static_cast<uint32_t>(d),
                        M::bits(span.len_q > 0 ? sum / static_cast<float>(span.len_q) : 0));
      }
      M::sync();
      for (int key = lanes.row; key < g.tile_keys; key += lanes.rows) {
        float x[8] = {}, dot = 0;
        const bool bad = M::load_shared(at.bad + 4 * static_cast<uint32_t>(key)) != 0;
        if (b.first + key < span.len_k && !bad) load_key(p, span, b, key, 8 * lanes.lane, at, x);
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (8 * lanes.lane + i < g.dim_qk) dot = M::fma(x[i], shared_float(at.v_centre, 8 * lanes.lane + i), dot);
        for (int far = lanes.lanes / 2; far > 0; far /= 2) dot += M::shuffle_xor(dot, far);
        if (lanes.lane == 0)
          p.k_bias[(h * g.key_tiles() + in_head) * g.tile_keys + key] = dot * p.softmax_scale * kLog2E;
      }
    }
  }
};

template <class M>
CLARY_DEVICE void pack(const QuantiseParams& p, uint32_t shared) {
  if (M::block_z() == 0)
    PackQueries<M>::run(p, shared);
  else
    PackKeys<M>::run(p, shared);
}

}  // namespace clary::cuda
