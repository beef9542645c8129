// S^T = K Q^T of a unit and, fused with it, P^T = 2^(S - reference) as bf16 in the layout of an operand, or the words
// that kernel/tiles/bytes.h makes bytes of.
//
//   tile product -> store (to `raw`, which stays in L1) -> one FMA: 128 (S - reference) + 127 * 128 in the low word ->
//   words of two keys joined in a dword -> linear mantissa corrected by a table -> P; beside it the largest word per
//   query
//
// A round is 32 keys x 32 queries: 4 accumulators. Its conversion runs beside the products of the next round, in pieces
// of 4 keys, and a tile is stored only when its register is needed again: a store that follows its product closely
// blocks the matrix engine (30 cycles), four products later it costs nothing.
// Per 256 scores: 16 (d = 64 INT8) to 64 cycles of products beside about 40 slots on each vector port.
//
// INT8 sums start at the bits of 1.5 * 2^23, so they *are* floats (kMagic + S) and need no conversion.
//
// f32 as two bf16: three products for each chunk, and P = 2^(S - reference) by a polynomial, as a high and a low half.
#pragma once

#include <algorithm>
#include <limits>

#include "kernel/item.h"
#include "kernel/tiles/layout.h"

namespace clary {

template <class V, class S>
class TileScores {
 public:
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using I16 = typename V::I16;

  TileScores(const AttendArgs& args, const ItemState& state)
      : a_(args), s_(state), chunks_(args.sizes->key_steps / (S::kSplit ? 32 : 16)) {}

  // P and the tops of the unit. kRanged: positions are compared and words clamped; otherwise every score must be
  // visible and within the words: 350 octaves below and 128 above the reference, or for bytes 290 on either side.
  // `evict`: where the tiles left in tmm4..7 belong.
  template <bool kRanged>
  void run(const TileUnit& u, float* evict) {
    if constexpr (S::kSplit) {
      has_low_halves(*a_.problem) ? run_passes<kRanged, 3>(u, evict) : run_passes<kRanged, 1>(u, evict);
    } else {
      run_passes<kRanged, 1>(u, evict);
    }
  }

  // Largest word of each query of tile g.
  I32 top(int g) const { return V::load_i32(top_ + g * 16); }
  // The same in octaves; -inf where no key was seen.
  F32 top_octaves(int g) const { return V::load(octaves_ + g * 16); }
  // For units whose words were made elsewhere.
  void set_top(int g, I32 words, F32 octaves) {
    V::store_i32(top_ + g * 16, words), V::store(octaves_ + g * 16, octaves);
  }

  // Products of one panel with query tile g as they come, [4 key tiles][16 keys][16 queries].
  void raw_panel(const TileUnit& u, int g, int panel) const {
    const std::byte* k = keys(u, panel * 4);
    unroll<4>([&](auto j) { start<4 + j>(); });
    const bool three = S::kSplit && has_low_halves(*a_.problem);
    for (int i = 0; i < chunks_ * (three ? 3 : 1); ++i) {
      const int c = three ? i / 3 : i;
      V::template tile_load<0>(queries(u, g) + (c + (three && i % 3 == 2 ? chunks_ : 0)) * 16, s_.q_stride * 4);
      unroll<4>([&](auto j) {
        V::template tile_load<2>(k + tile_bytes() * j + (c + (three && i % 3 == 0 ? chunks_ : 0)) * 1024, 64);
        multiply<4 + j, 2, 0>();
      });
    }
    unroll<4>([&](auto j) { V::template tile_store<4 + j>(raw() + j * kTileDwords, 64); });
  }

  // Where tiles of scores pass from the matrix engine to the vector unit: four of them.
  float* raw() const { return reinterpret_cast<float*>(s_.raw); }

  // What the products of a key tile are multiplied by to give octaves, apart from the factor of the query.
  float key_scale(const TileUnit& u, int key) const {
    return S::kIntegerQk ? a_.head->key_scales[u.block * kBlockKeys + key] : 1.0f;
  }

  // P of two keys from their octaves above the reference, as two bf16. Rounded by half a unit that is added to the
  // magnitude: an operation of any port, where converting to bf16 takes two of both.
  [[gnu::always_inline]] static void store_exponentials(int16_t* p, F32 a, F32 b) {
    const I32 half = V::set_i32(0x8000), high_half = V::set_i32(static_cast<int32_t>(0xffff0000u));
    const F32 x[2] = {V::exp2(a), V::exp2(b)};
    I32 high[2], low[2];
    unroll<2>([&](auto i) __attribute__((always_inline)) {
      high[i] = V::and_i32(V::add_i32(V::as_i32(x[i]), half), high_half);
      low[i] = V::add_i32(V::as_i32(V::sub(x[i], V::as_f32(high[i]))), half);
    });
    V::store_i16(p, V::join_high_words(high[0], high[1]));
    V::store_i16(p + kLowWords, V::join_high_words(low[0], low[1]));
  }

 private:
  using Words = TileWords<S>;

  // What converts products: per query tile, by lanes.
  struct Lanes {
    F32 query_scale[2], base[2];  // words per product, and kMagic + that of 1 - those of the reference
    F32 scale[2], offset[2];
    std::conditional_t<S::kSplit, F32, I16> top[2];
    F32 begin[2], end[2];  // kRanged: first visible key of the block, and the one after the last
    const uint32_t* words[2];
    const float* bias[2];
    int16_t* to[2];
  };

  const std::byte* keys(const TileUnit& u, int key_tile) const {
    return a_.head->keys + u.block * a_.sizes->key_block_bytes + key_tile * tile_bytes();
  }
  int64_t tile_bytes() const { return int64_t{a_.sizes->key_steps} * 64; }
  const uint32_t* queries(const TileUnit& u, int g) const { return s_.q + (u.first_row + g * 16) * s_.q_stride; }

  template <int T>
  [[gnu::always_inline]] static void start() {
    if constexpr (S::kIntegerQk) {
      V::template tile_load<T>(kMagicRow.data(), 0);
    } else {
      V::template tile_zero<T>();
    }
  }
  template <int C, int A, int B>
  [[gnu::always_inline]] static void multiply() {
    if constexpr (S::kIntegerQk) {
      V::template tile_dot4_ss<C, A, B>();
    } else {
      V::template tile_dot2<C, A, B>();
    }
  }

  // kPasses: products of a pair of chunks: 1, or with low halves 3.
  template <bool kRanged, int kPasses>
  void run_passes(const TileUnit& u, float* evict) {
    if (chunks_ == 1) return rounds<1, kRanged, kPasses>(u, evict);
    chunks_ < 4 ? rounds<2, kRanged, kPasses>(u, evict) : rounds<4, kRanged, kPasses>(u, evict);
  }

  // kBusy: chunks over whose products the 16 pieces of a conversion are spread.
  template <int kBusy, bool kRanged, int kPasses>
  [[gnu::noinline]] void rounds(const TileUnit& u, float* evict) {
    Lanes lanes;
    prepare<kRanged>(u, lanes);
    const int begin = u.panel_begin * 4, end = u.panel_end * 4;
    products<kBusy, kPasses>(u, begin, evict, NoPieces());
    for (int tile = begin + 2; tile < end; tile += 2) {
      set_scales(u, lanes, (tile - 2) * 16);
      products<kBusy, kPasses>(
          u, tile, raw(), [&](auto j, auto quarter) __attribute__((always_inline)) {
            piece<kRanged>(lanes, j, (tile - 2) * 16, quarter);
          });
    }
    set_scales(u, lanes, (end - 2) * 16);
    unroll<4>([&](auto j)
                  __attribute__((always_inline)) { V::template tile_store<4 + j>(raw() + j * kTileDwords, 64); });
    unroll<4>([&](auto j) __attribute__((always_inline)) {
      unroll<4>([&](auto q) __attribute__((always_inline)) { piece<kRanged>(lanes, j, (end - 2) * 16, q); });
    });
    for (int g = 0; g < 2; ++g) set_top(u, g, lanes.top[g]);
  }

  void set_top(const TileUnit& u, int g, F32 top) {
    // Above the reference; of no key -inf, which becomes the least integer.
    set_top(g, V::to_i32(top), V::add(top, reference(u, g)));
  }
  void set_top(const TileUnit& u, int g, I16 both) {
    const I32 words = V::as_words(both);
    const I32 top = V::max_i32(V::and_i32(words, V::set_i32(0xffff)), V::template shift_right<16>(words));
    const F32 above = V::to_f32(V::sub_i32(top, V::set_i32(Words::kOfOne)));
    const F32 octaves = V::mul_add(above, V::set(1 / Words::kPerOctave), reference(u, g));
    const F32 none = V::set(-std::numeric_limits<float>::infinity());
    set_top(g, top, V::select_less(V::zero(), V::to_f32(top), octaves, none));
  }

  // Of the words of tile g, in octaves. Bytes: rows that have seen no key have none yet.
  F32 reference(const TileUnit& u, int g) const {
    const F32 m = V::load(s_.m + u.first_row + g * 16);
    if constexpr (!Words::kBytes) return m;
    return V::select_less(V::set(-std::numeric_limits<float>::infinity()), m, m, V::zero());
  }

  struct NoPieces {};

  // Products of two key tiles; what the registers held goes `to` its place. piece(tile of the round before, quarter of
  // it) runs beside them, behind its tile's store.
  template <int kBusy, int kPasses, class Piece>
  [[gnu::always_inline]] void products(const TileUnit& u, int key_tile, float* to, Piece&& piece) const {
    const std::byte* k = keys(u, key_tile);
    constexpr int kProducts = 4 * kPasses;  // per chunk
    unroll<kBusy>([&](auto c) __attribute__((always_inline)) {
      unroll<kProducts>([&](auto i) __attribute__((always_inline)) {
        constexpr bool kFirst = c * kProducts + i < 4;
        step<kPasses, i / 4, kFirst, i % 4>(u, k, c, to);
        pieces<kBusy * kPasses, c * kProducts + i>(piece);
      });
    });
    for (int c = kBusy; c < chunks_; ++c)
      unroll<kProducts>([&](auto i)
                            __attribute__((always_inline)) { step<kPasses, i / 4, false, i % 4>(u, k, c, to); });
    pieces<kBusy * kPasses, kBusy * kProducts>(piece);
  }

  // Of 16 over 4 kChunks products: those before product kProduct, less those before the one before.
  template <int kChunks, int kProduct, class Piece>
  [[gnu::always_inline]] static void pieces(Piece&& piece) {
    constexpr int kBegin = kProduct > 0 ? (kProduct - 1) * 4 / kChunks : 0, kEnd = kProduct * 4 / kChunks;
    if constexpr (!std::is_same_v<std::remove_cvref_t<Piece>, NoPieces>)
      unroll<kEnd - kBegin>([&](auto i) __attribute__((always_inline)) {
        constexpr int kIndex = kBegin + i;
        piece(std::integral_constant<int, kIndex / 4>(), std::integral_constant<int, kIndex % 4>());
      });
  }

  // Accumulator j = key tile j / 2 x query tile j % 2. Of three passes: low keys by high queries, high by high, high by
  // low; operands stay in their registers where the next pass wants the same.
  template <int kPasses, int kPass, bool kFirst, int j>
  [[gnu::always_inline]] void step(const TileUnit& u, const std::byte* k, int chunk, float* to) const {
    if constexpr (kFirst) {
      V::template tile_store<4 + j>(to + j * kTileDwords, 64);
      start<4 + j>();
    }
    constexpr bool kLowKeys = kPasses == 3 && kPass == 0, kLowQueries = kPass == 2;
    if constexpr (j % 2 == 0 && kPass < 2)
      V::template tile_load_once<2 + j / 2>(k + j / 2 * tile_bytes() + (chunk + (kLowKeys ? chunks_ : 0)) * 1024, 64);
    if constexpr (j < 2 && kPass != 1)
      V::template tile_load<j>(queries(u, j) + (chunk + (kLowQueries ? chunks_ : 0)) * 16, s_.q_stride * 4);
    multiply<4 + j, 2 + j / 2, j % 2>();
  }

  template <bool kRanged>
  void prepare(const TileUnit& u, Lanes& lanes) const {
    for (int g = 0; g < 2; ++g) {
      const int row = u.first_row + g * 16;
      lanes.query_scale[g] = V::mul(V::load(s_.q_scale + row), V::set(Words::kPerOctave));
      lanes.base[g] = V::mul_add(reference(u, g), V::set(-Words::kPerOctave), V::set(Words::kOrigin + Words::kOfOne));
      lanes.to[g] = u.words(s_.p, g);
      lanes.scale[g] = lanes.query_scale[g], lanes.offset[g] = lanes.base[g];
      if constexpr (S::kSplit) {
        lanes.top[g] = V::set(Words::kHidden);
      } else {
        lanes.top[g] = V::set_i16(0);
      }
      lanes.bias[g] = s_.key_bias[row] + u.block * kBlockKeys;
      if constexpr (S::kIntegerQk) lanes.words[g] = a_.head->bias_words + (lanes.bias[g] - a_.head->key_bias) / 2;
      if constexpr (kRanged) {
        alignas(64) float begin[16], end[16];
        const int64_t first = u.block * kBlockKeys;
        for (int i = 0; i < 16; ++i) {
          begin[i] = static_cast<float>(std::clamp<int64_t>(s_.range[row + i].begin - first, 0, kBlockKeys));
          end[i] = static_cast<float>(std::clamp<int64_t>(s_.range[row + i].end - first, 0, kBlockKeys));
        }
        lanes.begin[g] = V::load(begin), lanes.end[g] = V::load(end);
      }
    }
  }

  // For the 32 keys from `key` on. The scale is made a multiple of 2^-22, so that kMagic times it is exact.
  [[gnu::always_inline]] void set_scales(const TileUnit& u, Lanes& lanes, int key) const {
    if constexpr (S::kIntegerQk) {
      const F32 key_scales = V::set(key_scale(u, key)), two = V::set(2);
      unroll<2>([&](auto g) __attribute__((always_inline)) {
        lanes.scale[g] = V::sub(V::mul_add(lanes.query_scale[g], key_scales, two), two);
        lanes.offset[g] = V::mul_add(V::set(-kMagic), lanes.scale[g], lanes.base[g]);
      });
    }
  }

  template <bool kRanged>
  [[gnu::always_inline]] void piece(Lanes& lanes, int j, int round_key, int quarter) const {
    if constexpr (V::kVectorsAreLoops) {
      convert_apart<kRanged>(lanes, j, round_key, quarter);
    } else {
      convert<kRanged>(lanes, j, round_key, quarter);
    }
  }
  // Unrolled sixteen times, loops over lanes take minutes to compile.
  template <bool kRanged>
  [[gnu::noinline]] void convert_apart(Lanes& lanes, int j, int round_key, int quarter) const {
    convert<kRanged>(lanes, j, round_key, quarter);
  }

  // 4 keys x 16 queries of tile j of the round at `round_key`.
  template <bool kRanged>
  [[gnu::always_inline]] void convert(Lanes& lanes, int j, int round_key, int quarter) const {
    const int g = j % 2, first = round_key + j / 2 * 16 + quarter * 4;
    const float* s = raw() + j * kTileDwords + quarter * 64;
    int16_t* p = lanes.to[g] + first * 16;
    unroll<2>([&](auto half) __attribute__((always_inline)) {
      constexpr int kA = Words::first_key(half), kB = kA + Words::kPairDistance;
      F32 a = V::mul_add(V::load(s + kA * 16), lanes.scale[g], lanes.offset[g]);
      F32 b = V::mul_add(V::load(s + kB * 16), lanes.scale[g], lanes.offset[g]);
      if constexpr (kRanged) a = in_range(lanes, g, a, first + kA), b = in_range(lanes, g, b, first + kB);
      if constexpr (S::kSplit) {
        lanes.top[g] = V::max(lanes.top[g], V::max(a, b));
        return store_exponentials(p + half * 32, a, b);
      } else {
        I16 words = V::join_words(V::as_i32(a), V::as_i32(b));
        if constexpr (S::kIntegerQk && !kRanged)
          words = V::add_i16(words, V::as_i16(V::set_i32(static_cast<int32_t>(lanes.words[g][first / 2 + half]))));
        lanes.top[g] = V::max_u16(lanes.top[g], words);
        V::store_i16(p + half * 32, Words::kBytes ? words : V::bf16_of_words(words));
      }
    });
  }

  // One key: bias, visibility, and the word clamped. Hidden scores become the word of P = 0.
  [[gnu::always_inline]] static F32 in_range(const Lanes& lanes, int g, F32 x, int key) {
    const F32 at = V::set(static_cast<float>(key)), none = V::set(Words::kHidden);
    x = V::mul_add(V::set(lanes.bias[g][key]), V::set(Words::kPerOctave), x);
    x = V::select_less(at, lanes.end[g], x, none);
    x = V::select_less(at, lanes.begin[g], none, x);
    return V::min(V::max(x, none), V::set(Words::kOrigin + Words::kMost));
  }

  const AttendArgs& a_;
  const ItemState& s_;
  const int chunks_;
  alignas(64) int32_t top_[32];
  alignas(64) float octaves_[32];
};

}  // namespace clary
