// P^T as bytes, and O^T += V^T P^T of INT8 values.
//
//   words of a unit -> minus (largest word of the query - 255 codes), not below 0 -> four keys joined in a dword ->
//   table of 256 bytes -> P; beside it the sums of P as it was rounded
//
// The products of a unit wait until the words of the next one are there, whose exponentials then run beside them: 24
// slots on port 5 per 256 scores beside 32 cycles of products at head dim 128. Sums of a unit are exact integers;
// O += them * 2^(maximum of the unit - reference) * scale of the channel, beside the products of the next 32 channels.
#pragma once

#include <limits>

#include "kernel/item.h"
#include "kernel/tiles/scores.h"

namespace clary {

template <class V, class S>
class TileBytes {
 public:
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using I16 = typename V::I16;

  TileBytes(const AttendArgs& args, const ItemState& state, const TileScores<V, S>& scores)
      : a_(args), s_(state), scores_(scores), groups_(args.sizes->value_width / 32) {}

  // As TileProducts; here no tile waits in its register for a place to be stored.
  float* take_pending(float* otherwise) const { return otherwise; }
  void release_tiles() const {}

  // Where the words of the next unit lie.
  int turn() const { return turn_; }

  // The products of the unit before; takes over this one.
  void run(const TileUnit& u) {
    Pending next;
    next.unit = u;
    update(next);
    for (int g = 0; g < 2; ++g) next.codes[g] = codes_of(u, g);
    if (busy_) multiply(next.codes);
    for (Codes& codes : next.codes)
      while (codes.rows > 0) exponentials(codes);
    pending_ = next, busy_ = true;
    turn_ = (turn_ + 1) % 3;
  }

  void finish() {
    Codes none[2] = {};
    if (busy_) multiply(none);
    busy_ = false;
  }

 private:
  using Words = TileWords<S>;
  static constexpr int kStepsPerPanel = kPanelKeys / 4;

  // Of one query tile: the rows of four keys whose P are still to be made, and the sums of those that are.
  struct Codes {
    const int16_t* words = nullptr;
    uint32_t* p = nullptr;
    int rows = 0;
    I16 lowest;  // word of code 0
    I32 sums;
  };

  struct Pending {
    TileUnit unit;
    Codes codes[2];
    bool moves = false;
    // Of each query: O and the sums that are there times alpha, those of the unit times beta.
    alignas(64) float alpha[2][16], beta[2][16];
  };

  uint32_t* p(const TileUnit& u, int g) const {
    return reinterpret_cast<uint32_t*>(u.words(s_.p, 0)) + g * kBlockKeys * 4;
  }

  // The reference follows a maximum that is 30 octaves above it. To whole octaves: kernel/tiles/layout.h.
  void update(Pending& u) const {
    const F32 none = V::set(-std::numeric_limits<float>::infinity()), magic = V::set(kMagic), far = V::set(kFarOctaves);
    for (int g = 0; g < 2; ++g) {
      float* const m = s_.m + u.unit.first_row + g * 16;
      const F32 top = scores_.top_octaves(g), old = V::load(m), whole = V::sub(V::add(top, magic), magic);
      const F32 now = V::select_less(V::add(old, far), top, whole, old);
      const F32 moved = V::select_less(old, now, V::sub(old, now), V::zero());
      V::store(m, now);
      V::store(u.alpha[g], V::exp2(moved));
      V::store(u.beta[g], V::exp2(V::select_less(none, top, V::sub(top, now), none)));
      u.moves |= V::reduce_max(V::sub(V::zero(), moved)) > 0;
    }
  }

  Codes codes_of(const TileUnit& u, int g) const {
    // Rounded to a code: a word is a quarter.
    constexpr int32_t kBelow = 255 * 4 + 2;
    const I32 top = scores_.top(g), both = V::or_i32(top, V::template shift_left<16>(top));
    Codes codes;
    codes.words = u.words(s_.p, g) + u.panel_begin * kPanelKeys * 16;
    codes.p = p(u, g) + u.panel_begin * kStepsPerPanel * 16;
    codes.rows = (u.panel_end - u.panel_begin) * kStepsPerPanel;
    codes.lowest = V::sub_u16(V::as_i16(both), V::set_i16(kBelow));
    codes.sums = V::set_i32(0);
    return codes;
  }

  // 4 keys x 16 queries.
  [[gnu::always_inline]] static void exponentials(Codes& codes) {
    const I16 a = V::sub_u16(V::load_i16(codes.words), codes.lowest);
    const I16 b = V::sub_u16(V::load_i16(codes.words + 32), codes.lowest);
    const I32 p = V::exp2_codes(V::join_codes(a, b));
    V::store_i32(codes.p, p);
    codes.sums = V::dot4(codes.sums, p, V::set_i32(0x01010101));
    codes.words += 64, codes.p += 16, --codes.rows;
  }

  // The pending unit's products; beside them P of the next.
  void multiply(Codes (&next)[2]) {
    add_sums();
    for (int g = 0; g < groups_; ++g) {
      Codes& codes = next[next[0].rows > 0 ? 0 : 1];
      groups_ >= 8 ? group<1>(g, codes) : groups_ >= 4 ? group<2>(g, codes) : group<4>(g, codes);
    }
    unroll<4>([&](auto j) { V::template tile_store<4 + j>(raw() + j * kTileDwords, 64); });
    for (int quarter = 0; quarter < 16; ++quarter) add_quarter(groups_ - 1, quarter);
  }

  // Moves the reference of what is there, and adds the sums of P.
  void add_sums() {
    const TileUnit& u = pending_.unit;
    for (int g = 0; g < 2; ++g) {
      const F32 alpha = V::load(pending_.alpha[g]), beta = V::load(pending_.beta[g]);
      float* const l = s_.l + u.first_row + g * 16;
      const F32 sums = V::mul(V::to_f32(pending_.codes[g].sums), V::set(1.0f / 255));
      V::store(l, V::mul_add(V::load(l), alpha, V::mul(sums, beta)));
      if (!pending_.moves) continue;
      float* o = rows_of_o(a_, s_, u.first_row) + g * kTileDwords;
      for (int tile = g; tile < groups_ * 4; tile += 2, o += 2 * kTileDwords)
        for (int i = 0; i < kTileDwords; i += 16) V::store(o + i, V::mul(V::load(o + i), alpha));
    }
  }

  // 32 channels x 32 queries. kRows: rows of P made beside each product.
  template <int kRows>
  [[gnu::noinline]] void group(int g, Codes& next) {
    const TileUnit& u = pending_.unit;
    Codes codes = next;
    const std::byte* v = a_.head->values + u.block * a_.sizes->value_block_bytes + int64_t{g} * kPanels * 2048;
    int quarter = 0;
    for (int panel = u.panel_begin; panel < u.panel_end; ++panel) {
      const uint32_t* p = this->p(u, 0) + panel * kTileDwords;
      unroll<4>([&](auto j) __attribute__((always_inline)) {
        if (panel == u.panel_begin) {
          if (g > 0) V::template tile_store<4 + j>(raw() + j * kTileDwords, 64);
          V::template tile_zero<4 + j>();
        }
        if constexpr (j == 0) V::template tile_load_once<2>(v + panel * 2048, 64);
        if constexpr (j == 2) V::template tile_load_once<3>(v + panel * 2048 + 1024, 64);
        if constexpr (j < 2) V::template tile_load<j>(p + j * kBlockKeys * 4, 64);
        V::template tile_dot4_su<4 + j, 2 + j / 2, j % 2>();
        if (g > 0) add_quarter(g - 1, quarter++);
        if (codes.rows > 0) unroll<kRows>([&](auto) __attribute__((always_inline)) { exponentials(codes); });
      });
    }
    while (g > 0 && quarter < 16) add_quarter(g - 1, quarter++);
    next = codes;
  }

  // 4 channels of a group whose tiles lie in `raw`: of tile quarter / 4.
  [[gnu::always_inline]] void add_quarter(int g, int quarter) const {
    const TileUnit& u = pending_.unit;
    const float* scales =
        a_.head->value_scales + u.block * a_.sizes->value_width + g * 32 + quarter / 8 * 16 + quarter % 4 * 4;
    const F32 beta = V::load(pending_.beta[quarter / 4 % 2]);
    const int32_t* from = raw() + quarter * 64;
    float* to = rows_of_o(a_, s_, u.first_row) + int64_t{g} * 4 * kTileDwords + quarter * 64;
    unroll<4>([&](auto i) __attribute__((always_inline)) {
      const F32 weight = V::mul(beta, V::set(scales[i]));
      V::store(to + i * 16, V::mul_add(V::to_f32(V::load_i32(from + i * 16)), weight, V::load(to + i * 16)));
    });
  }

  int32_t* raw() const { return s_.raw; }

  const AttendArgs& a_;
  const ItemState& s_;
  const TileScores<V, S>& scores_;
  const int groups_;
  Pending pending_;
  int turn_ = 0;
  bool busy_ = false;
};

}  // namespace clary
