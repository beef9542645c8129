// The general way from products to P^T, for units whose scores single keys or rules change: scores go to the order in
// which rules are written (rows of queries, docs/semantics.md), and come back as words. For bf16 it also moves the
// reference, to the true maximum, for every unit that the fused way could not hold; words that become bytes are
// written relative to the unit's own maxima. Two transposes of 16 x 16 per tile: several times
// slower than the fused way, on few of the units.
#pragma once

#include <cmath>
#include <limits>

#include "kernel/rules.h"
#include "kernel/softmax.h"
#include "kernel/tiles/products.h"
#include "kernel/tiles/scores.h"

namespace clary {

template <class V, class S>
class TileNatural {
 public:
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using I16 = typename V::I16;

  TileNatural(const AttendArgs& args, const ItemState& state, const Rules<V, S>& rules, const Softmax<V, S>& softmax,
              TileScores<V, S>& scores)
      : a_(args), s_(state), rules_(rules), softmax_(softmax), scores_(scores) {}

  // P of the unit, or words and tops. For bf16 the accumulators of earlier products must lie in `o`, the unit's O^T.
  void run(const TileUnit& u, bool with_mask, float* o) const {
    for (int g = 0; g < 2; ++g) {
      Unit rows;
      rows.first_row = u.first_row + g * 16, rows.rows = kUnitRows, rows.block = u.block;
      rows.real_rows = std::clamp(a_.count - rows.first_row, 0, kUnitRows);
      rows.panel_begin = u.panel_begin, rows.panel_end = u.panel_end;
      rows.seen_keys = u.panel_end * kPanelKeys;
      load_scores(u, g, rows);
      rules_.apply(rows, with_mask);
      if constexpr (Words::kBytes) {
        alignas(64) float tops[16];
        find_tops(rows, g, tops);
        store_words(u, rows, g, tops);
      } else {
        move_reference(rows, g, o);
        store_words(u, rows, g, s_.m + rows.first_row);
      }
    }
  }

 private:
  using Words = TileWords<S>;

  // Octaves, in s_.s.
  void load_scores(const TileUnit& u, int g, const Unit& rows) const {
    for (int panel = u.panel_begin; panel < u.panel_end; ++panel) {
      scores_.raw_panel(u, g, panel);
      for (int tile = 0; tile < 4; ++tile) {
        const int key = panel * kPanelKeys + tile * 16;
        I32 x[16];
        for (int i = 0; i < 16; ++i) x[i] = V::load_i32(scores_.raw() + tile * kTileDwords + i * 16);
        V::transpose16(x);
        const F32 start = V::set(S::kIntegerQk ? kMagic : 0.0f);
        for (int r = 0; r < 16; ++r) {
          const F32 scale = V::set(s_.q_scale[rows.first_row + r] * scores_.key_scale(u, key));
          const float* bias = s_.key_bias[rows.first_row + r] + u.block * kBlockKeys + key;
          V::store(s_.s + r * kBlockKeys + key, V::mul_add(V::sub(V::as_f32(x[r]), start), scale, V::load(bias)));
        }
      }
    }
  }

  // To whole octaves, so that words stay exact. Rows that have seen no key take their maximum; others follow it only
  // when it has grown out of sight.
  void move_reference(const Unit& rows, int g, float* o) const {
    alignas(64) float moved[16];
    bool any = false;
    for (int r = 0; r < 16; ++r) {
      float &m = s_.m[rows.first_row + r], &l = s_.l[rows.first_row + r];
      const float top = std::nearbyint(softmax_.row_top(rows, r));
      const bool seen = top > -std::numeric_limits<float>::infinity() && top < std::numeric_limits<float>::infinity();
      moved[r] = 0;
      if (!seen || (l == 0 ? top == m : top <= m + kFarOctaves)) continue;
      if (l != 0) moved[r] = m - top, any = true;
      m = top;
    }
    if (!any) return;
    const F32 alpha = V::exp2(V::load(moved));
    float* l = s_.l + rows.first_row;
    V::store(l, V::mul(V::load(l), alpha));
    for (int tile = g; tile < a_.sizes->value_width / 8; tile += 2)
      for (int i = 0; i < 16; ++i) {
        float* row = o + tile * kTileDwords + i * 16;
        V::store(row, V::mul(V::load(row), alpha));
      }
  }

  // The largest score of each row; a reference of 0 where there is none.
  void find_tops(const Unit& rows, int g, float (&tops)[16]) const {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    alignas(64) float octaves[16];
    alignas(64) int32_t words[16];
    for (int r = 0; r < 16; ++r) {
      const float top = softmax_.row_top(rows, r);
      const bool seen = top > -kInfinity && top < kInfinity;
      tops[r] = seen ? top : 0, octaves[r] = seen ? top : -kInfinity, words[r] = seen ? Words::kOfOne : 0;
    }
    scores_.set_top(g, V::load_i32(words), V::load(octaves));
  }

  void store_words(const TileUnit& u, const Unit& rows, int g, const float* references) const {
    const F32 scale = V::set(Words::kPerOctave), lowest = V::set(Words::kHidden),
              highest = V::set(Words::kOrigin + Words::kMost);
    for (int key = rows.panel_begin * kPanelKeys; key < rows.panel_end * kPanelKeys; key += 16) {
      I32 x[16];
      for (int r = 0; r < 16; ++r) {
        const F32 s = V::sub(V::load(s_.s + r * kBlockKeys + key), V::set(references[r]));
        const F32 word = V::mul_add(s, scale, V::set(Words::kOrigin + Words::kOfOne));
        x[r] = V::as_i32(V::min(V::max(word, lowest), highest));
      }
      V::transpose16(x);
      int16_t* p = u.words(s_.p, g) + key * 16;
      for (int pair = 0; pair < 8; ++pair, p += 32) {
        const int first = Words::first_key(pair);
        if constexpr (S::kSplit) {
          scores_.store_exponentials(p, V::as_f32(x[first]), V::as_f32(x[first + 1]));
        } else {
          const I16 words = V::join_words(x[first], x[first + Words::kPairDistance]);
          V::store_i16(p, Words::kBytes ? words : V::bf16_of_words(words));
        }
      }
    }
  }

  const AttendArgs& a_;
  const ItemState& s_;
  const Rules<V, S>& rules_;
  const Softmax<V, S>& softmax_;
  TileScores<V, S>& scores_;
};

}  // namespace clary
