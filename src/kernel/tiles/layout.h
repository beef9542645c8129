// Layouts of the matrix engine: tiles of 16 rows x 16 dwords (1 KB), lanes are queries.
//
//   S^T = K Q^T      A = K    16 keys x 16 steps, rows as they are  [key tile][chunk][16 keys][16 steps]
//                    B = Q    16 steps x 16 queries, transposed     [query tile][chunk], where the rows were
//   O^T += V^T P^T   A = V^T  16 channels x 16 steps of 2 keys      [32 channels][32 keys][2][16 channels][16 steps]
//                    B = P^T  16 steps of 2 keys x 16 queries       [query tile][128 steps][16 queries]
//                    C = O^T  16 channels x 16 queries, f32         [32 channels][channel tile][query tile]
//   INT8 values      A = V^T  16 channels x 16 steps of 4 keys      [32 channels][64 keys][2][16 channels][16 steps]
//                    B = P^T  16 steps of 4 keys x 16 queries, u8   [query tile][64 steps][16 queries]
//   f32 as two bf16  K, Q     chunks of high halves, then as many of low ones, of each key tile or query tile
//                    V^T      all of a block's high halves, then all of the low ones
//                    P^T      [query tile][high, low][64 steps][16 queries]: of half a block at a time
//
// A chunk is 16 steps of 4 bytes: 64 INT8 or 32 bf16 channels. Transposed scores make every factor of a query a vector
// and its maximum a vertical one, K needs no packing, and P is born in the layout of an operand: nothing is shuffled
// between lanes but the halves of a dword.
//
//   unit  = 32 queries (2 query tiles) x 256 keys
//   tmm   = 4..7 accumulators (2 x 2), 0 and 1 B, 2 and 3 A: 4 tile loads feed 4 products
//   L1    = P 16 KB, O^T of the unit 128 bytes per channel, Q 64 bytes per step, 4 KB of scores on their way: 44 KB at
//           head dim 128 in bf16. K and V come from L2 and pass L1 by. Two bf16: Q 128 bytes per step, 52 KB at head
//           dim 128, of which scores need 36 and products 32; whole blocks would take 16 KB more for P.
//   chunk of keys = as many blocks as fit half of L2; all units of an item pass over it before the next
//
// Source of the transposed form and of the fused exponential: measurements on Granite Rapids (docs/performance.md).
#pragma once

#include <array>
#include <limits>

#include "kernel/scheme.h"

namespace clary {

inline constexpr int kTileDwords = 256;
// Rows of a unit: two query tiles, so that each tile of K and V that is loaded is used twice.
inline constexpr int kTileUnitRows = 32;
// Keys that share a scale: those that are converted together, so that scaling costs one FMA a score.
inline constexpr int kTileScaleKeys = 32;
// K and V of a chunk of keys: half of an L2 of 2 MB; the rest holds the item's O and Q.
inline constexpr int64_t kKeyChunkBytes = 1 << 20;
// How far a maximum may lie above the reference, in octaves, and a first one below: P up to 2^30 and its sums stay far
// inside f32, and 97 octaves below the maximum are left.
inline constexpr int kFarOctaves = 30;

// 1.5 * 2^23: a float around it holds an integer in its low bits, and an INT32 sum that starts at its bits is a float.
inline constexpr float kMagic = 12582912.0f;

// Scores as 16-bit words, two keys in a dword.
//   bf16 P   1/128 octave a unit, and 127 octaves for 1: a word is a bf16 with a linear mantissa. Keys 2 i and 2 i + 1.
//   u8 P     1/112 octave, a quarter of what P can tell apart, for scores and biases are rounded one by one. Keys 4 i
//            and 4 i + 2, 4 i + 1 and 4 i + 3: two of these dwords become one of four bytes.
// The reference of a word of 1 is a whole number of octaves, so that moving it changes no word by a rounding. Word 0 is
// that of a hidden key. Between kLowest and kHighest nothing was clamped that matters. Of two bf16 there are no words:
// exponentials are f32, and tops whole octaves.
template <class S>
struct TileWords {
  static constexpr bool kBytes = S::kPv == Element::i8t;
  static constexpr float kPerOctave = kBytes ? 112 : S::kSplit ? 1 : 128;
  static constexpr int kOfOne = kBytes ? 32768 : S::kSplit ? 0 : 127 * 128;
  static constexpr int kMost = kBytes ? 65535 : S::kSplit ? 127 : 32767;
  // bf16: the reference follows a maximum in time. Bytes: it follows every maximum, and only a clamped one is too high.
  static constexpr int kReach = kBytes ? 290 * 112 : S::kSplit ? kFarOctaves : kFarOctaves * 128;
  static constexpr int kHighest = kOfOne + kReach, kLowest = kOfOne - kReach;
  // The float whose low word is 0, and that of a hidden key. Octaves are floats themselves.
  static constexpr float kOrigin = S::kSplit ? 0 : kMagic;
  static constexpr float kHidden = S::kSplit ? -std::numeric_limits<float>::infinity() : kMagic;
  // Keys of pair i of a dword: first_key(i) and the one that far behind.
  static constexpr int kPairDistance = kBytes ? 2 : 1;
  static constexpr int first_key(int pair) { return kBytes ? pair / 2 * 4 + pair % 2 : 2 * pair; }
};

// Where words and P of a unit lie: thirds of 8 KB. bf16: those of query tile g in third g, P in place of the words.
// Bytes: words in thirds `turn` and the next, then P of both query tiles in the first of them, behind what was read;
// the next unit's words go to the other two beside the products of this one.
inline constexpr int kThirdWords = 4096;

// f32 as two bf16: panels of keys whose P there is room for at a time, and how far low halves lie behind high ones.
inline constexpr int kSplitPanels = kPanels / 2, kLowWords = kSplitPanels * kPanelKeys * 16;
// bf16 tensors have no low halves, nor have their Q: what scales scores is applied to products.
[[gnu::always_inline]] inline bool has_low_halves(const Problem& p) { return p.dtype != DType::bf16; }
// x = high + low.
template <class V>
[[gnu::always_inline]] inline void store_split(uint16_t* high, uint16_t* low, typename V::F32 x) {
  V::store_bf16(high, x);
  V::store_bf16(low, V::sub(x, V::load_bf16(high)));
}

// A tile whose every row is this one starts sums at kMagic.
inline constexpr std::array<uint32_t, 16> make_magic_row() {
  std::array<uint32_t, 16> row{};
  for (auto& x : row) x = 0x4b400000;
  return row;
}
alignas(64) inline constexpr std::array<uint32_t, 16> kMagicRow = make_magic_row();

struct TileUnit {
  int first_row = 0;
  int64_t block = 0;
  int panel_begin = 0, panel_end = 0;
  int turn = 0;
  int first_panel = 0;  // whose P come first

  int16_t* words(uint8_t* p, int g) const {
    return reinterpret_cast<int16_t*>(p) + (turn + g) % 3 * kThirdWords - first_panel * kPanelKeys * 16;
  }
};

}  // namespace clary
