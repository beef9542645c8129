// Attention by mma.sync: sm_80, sm_86, sm_89, sm_120, and on sm_90 the precisions that have no wgmma kernel.
//
// A block of 4 warps owns kRows queries of one head and walks over tiles of keys; a warp owns strips of 16 rows.
//
//     shared memory:  Q image | K 0 | V^T 0 | K 1 | V^T 1        cp.async, two stages, one barrier per tile
//     registers:      O       kStrips x dim / 8 x 4     128 at dim 128 with two strips, or at 256 with one
//                     scores  kStrips x keys / 8 x 4     64         (dead once P is packed)
//                     P       kStrips x keys / 16 or 32 x 4
//
// Two strips per warp halve the shared-memory reads of K and V: a 16 x 8 x 32-byte product takes two cycles of an
// A100, and so does reading its 256 bytes of B.
//
// Registers per thread, of 255 (two blocks of 128 threads share an SM's 65536):
//
//     dim   strips   O    scores   P e4m3 / 16-bit   T    rows and scales
//      32     2      32     64         16 / 32       16         20
//      64     2      64     64         16 / 32       16         20
//      96     2      96     64         16 / 32       16         20
//     128     2     128     64         16 / 32       16         20          what is left is for addresses
//     192     1      96     32, 16      8 / 8         8         10
//     256     1     128     32, 16      8 / 8         8         10
//
// Scores and T are never alive together: T belongs to P V, which begins when P is packed.
//
// P V of one tile starts at zero and is added to O in f32 (O = alpha O + T, one FFMA per element, no more than a plain
// rescale): FP8 tensor cores keep only about 14 bits of the sum, so it must not run over many tiles. The idea is
// SageAttention2's and DeepSeek-V3's.
#pragma once

#include <type_traits>

#include "cuda/attention/epilogue.h"
#include "cuda/attention/rows.h"
#include "cuda/attention/softmax.h"
#include "cuda/attention/walk.h"
#include "cuda/layout/fragments.h"
#include "cuda/layout/image.h"

namespace clary::cuda {

template <class M, class C>
class MmaAttention;

template <Element kQk_, Element kPv_, int kDim_, int kStrips_, int kKeys_>
struct MmaConfig {
  template <class M>
  using Kernel = MmaAttention<M, MmaConfig>;
  static constexpr bool kPersistent = false;
  static constexpr Element kQk = kQk_, kPv = kPv_;
  static constexpr int kDim = kDim_, kStrips = kStrips_, kKeys = kKeys_;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps, kRows = 16 * kStrips * kWarps;
  static constexpr int kQkRowBytes = qk_row_bytes(kQk, kDim), kPvRowBytes = kKeys * bits_of(kPv) / 8;
  static constexpr int kQBytes = kRows * kQkRowBytes, kKBytes = kKeys * kQkRowBytes, kVBytes = kDim * kPvRowBytes;
  static constexpr int kStageBytes = kKBytes + kVBytes, kSharedBytes = kQBytes + 2 * kStageBytes;
  static_assert(kSharedBytes <= 99 * 1024, "the most that a block may have on sm_86, sm_89 and sm_120");
  static_assert(kQBytes % 1024 == 0 && kKBytes % 1024 == 0 && kVBytes % 1024 == 0, "swizzles count from 1024 bytes");
};

// The place of a lane's 16 bytes in an image; steps along k and strips of 16 rows leave the swizzle as it is.
template <int kRows, int kRowBytes>
struct MatrixAddress {
  static constexpr int kWidth = panel_bytes(kRowBytes);
  uint32_t row_offset, phase, byte;

  CLARY_DEVICE MatrixAddress(int row, int lane_byte)
      : row_offset(static_cast<uint32_t>(row * kWidth)),
        phase(swizzle(static_cast<uint32_t>(row * kWidth), kWidth) ^ static_cast<uint32_t>(row * kWidth)),
        byte(static_cast<uint32_t>(lane_byte)) {}
  CLARY_DEVICE uint32_t at(int step, int strip) const {
    const int panel = step * kStepBytes / kWidth, within = step * kStepBytes % kWidth;
    return row_offset + static_cast<uint32_t>(panel * kRows * kWidth + strip * 16 * kWidth) +
           ((byte + static_cast<uint32_t>(within)) ^ phase);
  }
};

template <class M, class C>
class MmaAttention {
 public:
  // One work item per block. The loop over full tiles is separate, so that ptxas assigns its registers and schedules
  // its loads without the code of masks in the way.
  static CLARY_DEVICE void run(const AttentionParams& p, uint32_t shared) {
    const Item item(p, M::block_x());
    if (item.is_beyond(C::kRows)) return;
    const Block block{p, item, item.walk, item.query_tile, item.key_base, item.bias_base(p.shape), shared};
    State state;
    reset_state(state);
    Cursor at{item.first, 0};
    if (item.has_tiles()) {
      copy(shared, p.q + item.query_tile * C::kQBytes, C::kQBytes);
      load_tile(block, 0, at.tile);
    }
    M::copy_commit();
    while (at.tile < item.walk.range.end) {
      const int stop = at.tile + item.walk.template full_run<M>(at.tile);
      if (at.tile == stop) {
        take_tile<false>(block, item.walk.next(at.tile + 1), at, state);
        continue;
      }
      const int after = item.walk.next(stop);
#pragma unroll 1
      do take_tile<true>(block, at.tile + 1 < stop ? at.tile + 1 : after, at, state);
      while (at.tile < stop);
    }
    finish(block, state);
  }

 private:
  using Score = std::conditional_t<is_integer(C::kQk), int, float>;
  static constexpr int kKeyTiles = C::kKeys / 8, kDimTiles = C::kDim / 8;
  using Soft = Softmax<M, C::kPv, kKeyTiles>;
  static constexpr bool kBiased = C::kQk == Element::s4;

  // What stays the same over a block's tiles, and is kept in registers.
  struct Block {
    const AttentionParams& p;
    const Item& item;
    const TileWalk& walk;
    int64_t query_tile, key_base, bias_base;
    uint32_t shared;
    CLARY_DEVICE uint32_t k(int stage) const {
      return shared + static_cast<uint32_t>(C::kQBytes + stage * C::kStageBytes);
    }
  };
  // The tile that is next, and the stage it lies in.
  struct Cursor {
    int tile, stage;
  };
  // What lives from tile to tile.
  struct State {
    float o[C::kStrips][kDimTiles][4];
    RowState rows[C::kStrips];
  };
  // What the softmax of a tile hands to its product.
  struct Packed {
    uint32_t p[C::kStrips][Soft::kSteps][4];
    float alpha[C::kStrips][2];
  };

  static CLARY_DEVICE int lane() { return M::thread() % 32; }
  // First row of this thread in the block's tile.
  static CLARY_DEVICE int row_of(int strip) { return (M::thread() / 32 * C::kStrips + strip) * 16 + lane() / 4; }

  static CLARY_DEVICE void reset_state(State& state) {
#pragma unroll
    for (int strip = 0; strip < C::kStrips; ++strip) {
      reset(state.rows[strip]);
#pragma unroll
      for (int n = 0; n < kDimTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) state.o[strip][n][i] = 0;
    }
  }

  // Images are whole runs of bytes, so neighbouring threads copy neighbouring 16 bytes: full lines, and no arithmetic.
  static CLARY_DEVICE void copy(uint32_t to, const uint8_t* from, int bytes) {
#pragma unroll 4
    for (int at = M::thread() * 16; at < bytes; at += C::kThreads * 16)
      M::copy_16(to + static_cast<uint32_t>(at), from + at);
  }
  static CLARY_DEVICE void load_tile(const Block& b, int stage, int tile) {
    const int64_t packed = b.key_base + tile;
    copy(b.k(stage), b.p.k + packed * C::kKBytes, C::kKBytes);
    copy(b.k(stage) + C::kKBytes, b.p.v + packed * C::kVBytes, C::kVBytes);
  }

  // The tile at the cursor; the next one is loaded meanwhile.
  template <bool kFull>
  static CLARY_DEVICE void take_tile(const Block& b, int next, Cursor& at, State& state) {
    M::template copy_wait<0>();
    M::sync();  // this tile is there, and everyone has finished with the other stage
    if (next < b.walk.range.end) load_tile(b, at.stage ^ 1, next);
    M::copy_commit();
    attend_tile<kFull>(b, at, state);
    at = {next, at.stage ^ 1};
  }

  // Scores, softmax and product of one tile. kFull: nothing hides or changes a score. INT4 kernels add the keys' addend
  // (k_bias) even then, and so take the maximum of converted scores.
  template <bool kFull>
  static CLARY_DEVICE void attend_tile(const Block& b, const Cursor& cursor, State& state) {
    const uint32_t k = b.k(cursor.stage);
    const int64_t key_tile = b.key_base + cursor.tile;
    Score s[C::kStrips][kKeyTiles][4];
    multiply_qk(b.shared, k, s);
    Packed packed;
#pragma unroll
    for (int strip = 0; strip < C::kStrips; ++strip) {
      float scale[2], x[kKeyTiles][4];
      load_scale(b.p, b.query_tile, key_tile, row_of(strip), scale);
      if constexpr (kFull && !kBiased) {
        Soft::full(s[strip], scale, state.rows[strip], packed.alpha[strip], x);
      } else {
        to_octaves(b, cursor.tile, scale, s[strip], x);
        if (!kFull) hide(b, cursor.tile, strip, x);
        Soft::partial(x, state.rows[strip], packed.alpha[strip]);
      }
      Soft::pack(x, packed.p[strip]);
    }
    multiply_pv(k + C::kKBytes, packed, state);
  }

  // Masks and the like on a partial tile.
  static CLARY_DEVICE void hide(const Block& b, int tile, int strip, float (&x)[kKeyTiles][4]) {
    const AttentionParams& p = b.p;
    const Item& item = b.item;
    const int key = tile * C::kKeys + 2 * (lane() % 4);
    const Place at{item.work.sequence, item.work.head, item.work.tile * C::kRows + row_of(strip), key,
                   item.key_base * C::kKeys + key};
    float shift[2];
    load_shift(p, item.query_tile, row_of(strip), shift);
    PartialScores<M, kKeyTiles>::apply(p, item.span, at, shift, x);
  }

  // S = Q K^T. Q is read again in every tile: kept in registers it would take 8 per k-step and two strips.
  static CLARY_DEVICE void multiply_qk(uint32_t q, uint32_t k, Score (&s)[C::kStrips][kKeyTiles][4]) {
    const MatrixAddress<C::kRows, C::kQkRowBytes> a_at(M::thread() / 32 * C::kStrips * 16 + a_address_row(lane()),
                                                       a_address_byte(lane()));
    const MatrixAddress<C::kKeys, C::kQkRowBytes> b_at(b_address_row(lane()), b_address_byte(lane()));
#pragma unroll
    for (int strip = 0; strip < C::kStrips; ++strip)
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[strip][n][i] = 0;
#pragma unroll
    for (int step = 0; step < C::kQkRowBytes / kStepBytes; ++step) {
      uint32_t a[C::kStrips][4];
#pragma unroll
      for (int strip = 0; strip < C::kStrips; ++strip) M::load_matrices(a[strip], q + a_at.at(step, strip));
#pragma unroll
      for (int pair = 0; pair < kKeyTiles / 2; ++pair) {
        uint32_t b[4];
        M::load_matrices(b, k + b_at.at(step, pair));
#pragma unroll
        for (int strip = 0; strip < C::kStrips; ++strip) {
          M::template mma<C::kQk>(s[strip][2 * pair], a[strip], b[0], b[1]);
          M::template mma<C::kQk>(s[strip][2 * pair + 1], a[strip], b[2], b[3]);
        }
      }
    }
  }

  // O = alpha O + P V, 16 channels at a time, so that T is 8 registers per strip: a load of 4 matrices serves two
  // products per strip.
  static CLARY_DEVICE void multiply_pv(uint32_t v, const Packed& packed, State& state) {
    const MatrixAddress<C::kDim, C::kPvRowBytes> b_at(b_address_row(lane()), b_address_byte(lane()));
#pragma unroll
    for (int pair = 0; pair < kDimTiles / 2; ++pair) {
      float t[C::kStrips][2][4] = {};
#pragma unroll
      for (int step = 0; step < Soft::kSteps; ++step) {
        uint32_t b[4];
        M::load_matrices(b, v + b_at.at(step, pair));
#pragma unroll
        for (int strip = 0; strip < C::kStrips; ++strip) {
          M::template mma<C::kPv>(t[strip][0], packed.p[strip][step], b[0], b[1]);
          M::template mma<C::kPv>(t[strip][1], packed.p[strip][step], b[2], b[3]);
        }
      }
#pragma unroll
      for (int strip = 0; strip < C::kStrips; ++strip)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& o = state.o[strip][2 * pair + half][i];
            o = M::fma(o, packed.alpha[strip][i >> 1], t[strip][half][i]);
          }
    }
  }

  // Octaves per unit of the product, of a thread's two rows: its keys share one scale.
  static CLARY_DEVICE void load_scale(const AttentionParams& p, int64_t query_tile, int64_t key_tile, int row,
                                      float (&scale)[2]) {
    if constexpr (is_integer(C::kQk)) {
      const float of_keys = p.k_scale[key_tile * kKeyGroups + lane() % 4];
      for (int r = 0; r < 2; ++r) scale[r] = p.q_scale[query_tile * C::kRows + row + 8 * r] * of_keys;
    } else {
      scale[0] = scale[1] = p.score_scale;
    }
  }
  static CLARY_DEVICE void load_shift(const AttentionParams& p, int64_t query_tile, int row, float (&shift)[2]) {
    for (int r = 0; r < 2; ++r) shift[r] = is_integer(C::kQk) ? p.q_shift[query_tile * C::kRows + row + 8 * r] : 0;
  }

  static CLARY_DEVICE void to_octaves(const Block& b, int tile, const float (&scale)[2], const Score (&s)[kKeyTiles][4],
                                      float (&x)[kKeyTiles][4]) {
    const int64_t bias = (b.bias_base + tile) * C::kKeys + 2 * (lane() % 4);
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float add = kBiased ? b.p.k_bias[bias + 8 * n + (i & 1)] : 0;
        x[n][i] = M::fma(M::to_float(s[n][i]), scale[i >> 1], add);
      }
  }

  static CLARY_DEVICE void finish(const Block& b, const State& state) {
    const AttentionParams& p = b.p;
    const Item& item = b.item;
#pragma unroll
    for (int strip = 0; strip < C::kStrips; ++strip) {
      float shift[2];
      load_shift(p, item.query_tile, row_of(strip), shift);
      Epilogue<M, C::kPv, C::kDim>::write(p, item.work, item.span, item.work.tile * C::kRows + row_of(strip), lane(),
                                          state.rows[strip], shift, state.o[strip]);
    }
  }
};

}  // namespace clary::cuda
