// O^T += V^T P^T of a unit, and the sums of P beside it. The accumulators are O itself, as f32 tiles: nothing on the
// vector ports but the sums. A group's accumulators are stored when the next group needs their registers; the last ones
// stay in tmm4..7 until the next products of any kind (take_pending()).
//
// f32 as two bf16: three products for each step of 32 keys, and the sums are those of high and low halves of P.
#pragma once

#include "kernel/item.h"
#include "kernel/tiles/scores.h"

namespace clary {

template <class V, class S>
class TileProducts {
 public:
  using F32 = typename V::F32;
  using I32 = typename V::I32;

  TileProducts(const AttendArgs& args, const ItemState& state, const TileScores<V, S>&)
      : a_(args), s_(state), groups_(args.sizes->value_width / 32) {}

  void run(const TileUnit& u) {
    F32 sums[2][2] = {{V::zero(), V::zero()}, {V::zero(), V::zero()}};
    // Every row of P is summed once, beside the products of one, two or four groups.
    const int share = groups_ >= 4 ? 4 : groups_ >= 2 ? 2 : 1;
    if constexpr (S::kSplit) {
      has_low_halves(*a_.problem) ? run_passes<3>(u, share, sums) : run_passes<2>(u, share, sums);
    } else {
      run_passes<1>(u, share, sums);
    }
    for (int g = 0; g < 2; ++g) {
      float* l = s_.l + u.first_row + g * 16;
      V::store(l, V::add(V::load(l), V::add(sums[g][0], sums[g][1])));
    }
  }

  int turn() const { return 0; }

  // Where tmm4..7 have to be stored, or `otherwise` if nothing waits; after this somebody else stores them.
  float* take_pending(float* otherwise) {
    float* const to = pending_ != nullptr ? pending_ : otherwise;
    pending_ = nullptr;
    return to;
  }
  void release_tiles() {
    if (pending_ == nullptr) return;
    unroll<4>([&](auto j) { V::template tile_store<4 + j>(pending_ + j * kTileDwords, 64); });
    pending_ = nullptr;
  }
  void finish() { release_tiles(); }

 private:
  template <int kPasses>
  void run_passes(const TileUnit& u, int share, F32 (&sums)[2][2]) {
    for (int g = 0; g < groups_; ++g) {
      if (g >= share) {
        group<kPasses, 0>(u, g, sums);
      } else {
        share == 4   ? group<kPasses, 2>(u, g, sums)
        : share == 2 ? group<kPasses, 4>(u, g, sums)
                     : group<kPasses, 8>(u, g, sums);
      }
    }
  }

  // kSums: rows of P summed beside each product of a pass: of query tile 0 beside the first two, of 1 beside the
  // others. Three passes: low values by high P, high by high, high by low; two: the last two of them. Operands stay in
  // their registers where the next pass wants the same.
  template <int kPasses, int kSums>
  [[gnu::noinline]] void group(const TileUnit& u, int g, F32 (&sums)[2][2]) {
    const std::byte* v =
        a_.head->values + u.block * a_.sizes->value_block_bytes + int64_t{g} * (kBlockKeys / 32) * 2048;
    float* o_tiles = rows_of_o(a_, s_, u.first_row) + int64_t{g} * 4 * kTileDwords;
    unroll<4>([&](auto j) __attribute__((always_inline)) {
      if (pending_ != nullptr) V::template tile_store<4 + j>(pending_ + j * kTileDwords, 64);
      V::template tile_load<4 + j>(o_tiles + j * kTileDwords, 64);
    });
    pending_ = o_tiles;
    for (int step = u.panel_begin * 2; step < u.panel_end * 2; ++step) {
      const int16_t* const p[2] = {u.words(s_.p, 0) + step * 2 * kTileDwords,
                                   u.words(s_.p, 1) + step * 2 * kTileDwords};
      unroll<4 * kPasses>([&](auto i) __attribute__((always_inline)) {
        constexpr int j = i % 4, kPass = i / 4;
        constexpr bool kLowValues = kPasses == 3 && kPass == 0, kLowP = kPasses > 1 && kPass == kPasses - 1;
        if constexpr (j % 2 == 0 && !kLowP)
          V::template tile_load_once<2 + j / 2>(
              v + (kLowValues ? a_.sizes->value_block_bytes / 2 : 0) + step * 2048 + j / 2 * 1024, 64);
        if constexpr (j < 2 && (kPass == 0 || kLowP)) V::template tile_load<j>(p[j] + (kLowP ? kLowWords : 0), 64);
        V::template tile_dot2<4 + j, 2 + j / 2, j % 2>();
        if constexpr (kPass == 0) {
          const int16_t* rows = p[j / 2] + (2 * g + j % 2) * kSums * 32;
          unroll<kSums>([&](auto r) __attribute__((always_inline)) { add_row(rows + r * 32, sums[j / 2]); });
        }
        if constexpr (kLowP) {
          const int16_t* rows = p[j / 2] + kLowWords + (2 * g + j % 2) * kSums * 32;
          unroll<kSums>([&](auto r) __attribute__((always_inline)) { add_row(rows + r * 32, sums[j / 2]); });
        }
      });
    }
  }

  // 2 keys x 16 queries.
  [[gnu::always_inline]] static void add_row(const int16_t* row, F32 (&sums)[2]) {
    const I32 pair = V::load_i32(row), high = V::set_i32(static_cast<int32_t>(0xffff0000u));
    sums[0] = V::add(sums[0], V::as_f32(V::template shift_left<16>(pair)));
    sums[1] = V::add(sums[1], V::as_f32(V::and_i32(pair, high)));
  }

  const AttendArgs& a_;
  const ItemState& s_;
  const int groups_;
  float* pending_ = nullptr;
};

}  // namespace clary
