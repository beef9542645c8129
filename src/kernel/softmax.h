// Online softmax of one unit over one block: scores -> P, and the running (m, l) of its rows.
//
// Fixed point (INT8 PV). S is i16 in 1/64 octave; P is u8 against the maximum of the *block* (against the row's running
// maximum a peaked row would lose everything else), u = 65280 * 2^(-d/64) from a 64-entry table, P = round(u / 256).
// The denominator sums u / 8 exactly in 16 bits: at most 8 values of 8160 per lane and block.
//
//   alpha = 2^(m_old - m_new)   rescales O and l       beta = 2^(m_block - m_new)   weighs this block
//
// f32 (16-bit and f32 PV). P = 2^(S - m_new), rounded to bf16 for bf16 products; the denominator sums what was rounded.
// Source: FlashAttention-2 (online softmax), SageAttention2 (block-local scale of P).
#pragma once

#include <array>
#include <cmath>
#include <limits>

#include "kernel/scores.h"

namespace clary {

// "No key yet", far below any real maximum in 1/64 octave: 2^((kNone - m) / 64) is 0.
inline constexpr int32_t kNone = -(1 << 30);

// Scores of hidden keys are -32768 to -32512, those of others far above (kFixedReach).
inline constexpr int16_t kHidden = -32000;

// 0, 1, 2, ...
alignas(64) inline constexpr auto kIota = [] {
  std::array<int16_t, kHalfKeys> numbers{};
  for (int i = 0; i < kHalfKeys; ++i) numbers[i] = static_cast<int16_t>(i);
  return numbers;
}();

template <class V, class S>
class Softmax {
 public:
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using I16 = typename V::I16;

  explicit Softmax(const ItemState& state) : s_(state) {}

  void reset(int value_width) {
    std::memset(s_.o, 0, static_cast<size_t>(s_.rows) * static_cast<size_t>(value_width) * 4);
    std::memset(s_.l, 0, static_cast<size_t>(s_.rows) * 16 * 4);
    for (int r = 0; r < s_.rows; r += 16) {
      const F32 none = V::as_f32(V::set_i32(kNone));
      V::store(s_.m + r, S::kFixedPoint ? none : V::set(-std::numeric_limits<float>::infinity()));
    }
  }

  // Scores in s16: the three steps that kernel/pipeline.h runs beside products.
  void fixed(const Unit& u) {
    for (int r = 0; r < u.rows; ++r) find_top(u, r);
    update(u);
    for (int r = 0; r < u.rows; ++r) exponentials_fixed(u, r, static_cast<int16_t>(top(u)[r]));
  }

  // Gives keys outside their rows' ranges scores below kHidden: P = 0 beside any visible one (kFixedReach).
  void hide_edges(const Unit& u) const {
    for (int r = 0; r < u.real_rows; ++r)
      for (int key = u.first_key(); key < u.end_key(); key += kHalfKeys) hide_edges(u, r, key);
  }

  // Maximum of one row of the block; kNone if all keys are hidden.
  [[gnu::always_inline]] void find_top(const Unit& u, int r) const {
    const int16_t* s = scores(u, r);
    // First and last 32 keys, then pairs of those between; one may be looked at twice.
    I16 a = V::load_i16(s + u.first_key()), b = V::load_i16(s + u.end_key() - kHalfKeys);
    for (int i = u.first_key() + kHalfKeys; i + kPanelKeys <= u.end_key(); i += kPanelKeys)
      a = V::max_i16(a, V::load_i16(s + i)), b = V::max_i16(b, V::load_i16(s + i + kHalfKeys));
    const int16_t highest = V::reduce_max_i16(V::max_i16(a, b));
    top(u)[r] = highest < kHidden ? kNone : highest;
  }

  // m, alpha and beta of the unit's 16 rows from the block maxima.
  void update(const Unit& u) const {
    const I32 block = V::load_i32(top(u)), old = V::load_i32(s_.m + u.first_row), highest = V::max_i32(block, old);
    V::store_i32(s_.m + u.first_row, highest);
    const F32 octave = V::set(1 / S::kUnitsPerOctave);
    V::store(s_.alpha, V::exp2(V::mul(V::to_f32(V::sub_i32(old, highest)), octave)));
    V::store(s_.beta, V::exp2(V::mul(V::to_f32(V::sub_i32(block, highest)), octave)));
  }

  // P of one row and panel from the row's maximum `top`; adds to the sums of u / 8. Halves: of the panel, whose P is 0
  // in the other.
  template <int Halves = 2>
  [[gnu::always_inline]] void exponentials(const Unit& u, int r, int panel, int16_t row_top, I16& sum) const {
    // Scores more than 1023 units (16 octaves) below the top are as good as -inf: clamped, they give P = 0.
    const int lowest = row_top - 1023;
    const I16 floor = V::set_i16(static_cast<int16_t>(lowest < -32768 ? -32768 : lowest));
    const int16_t* s = scores(u, r) + panel * kPanelKeys;
    I16 x[2] = {V::set_i16(0), V::set_i16(0)};  // u / 8
    unroll<Halves>([&](auto h) __attribute__((always_inline)) {
      const I16 score = V::max_i16(floor, V::load_i16(s + h * kHalfKeys));
      if constexpr (V::kQuarters) {
        x[h] = V::exp2_eighths(V::sub_i16(score, V::set_i16(static_cast<int16_t>(row_top + 128))));
      } else {
        x[h] = V::exp2_i16(V::sub_i16(V::set_i16(row_top), score));
      }
      sum = V::add_i16(sum, x[h]);
    });
    store_bytes(r, panel, x);
  }

  // l of one row, when the sums of all its panels are known.
  [[gnu::always_inline]] void add_sums(const Unit& u, int r, I16 sum) const {
    float* l = s_.l + (u.first_row + r) * 16;
    const F32 part = V::mul(V::to_f32(V::sum_pairs_u16(sum)), V::set(s_.beta[r]));
    V::store(l, V::mul_add(V::load(l), V::set(s_.alpha[r]), part));
  }

  // Scores in s (natural order), any of which may be -inf; they go to s16 relative to their maximum.
  void fixed_from_natural(const Unit& u) {
    for (int r = 0; r < u.rows; ++r) {
      const float highest = row_top(u, r);
      // Rows whose maximum is beyond exact integers in f32 are left to exact_row(); here they only must not overflow.
      constexpr float kLimit = 1 << 23;
      const bool seen = highest > -std::numeric_limits<float>::infinity();
      if (seen && !(highest > -kLimit && highest < kLimit)) s_.exact[u.first_row + r] = 1;
      const float clamped = highest > kLimit ? kLimit : highest < -kLimit ? -kLimit : highest;
      // Rounded, so that no score lies more than half a unit above it.
      top(u)[r] = seen ? static_cast<int32_t>(std::nearbyint(clamped)) : kNone;
      pack_row(u, r, V::set(seen ? static_cast<float>(top(u)[r]) : 0));
    }
    update(u);
    for (int r = 0; r < u.rows; ++r) exponentials_fixed(u, r, 0);
  }

  // Scores in s and P in bf16, in the steps of kernel/pipeline.h. beta has the maxima, then what exponentials subtract.
  [[gnu::always_inline]] void find_floating_top(const Unit& u, int r) const { s_.beta[r] = row_top(u, r); }

  void update_floating(const Unit& u) const {
    const F32 infinity = V::set(std::numeric_limits<float>::infinity()), old = V::load(s_.m + u.first_row);
    const F32 highest = V::max(V::load(s_.beta), old);
    const F32 reference = V::select_less(V::sub(V::zero(), infinity), highest, highest, V::zero());
    V::store(s_.m + u.first_row, highest);
    V::store(s_.beta, reference);
    V::store(s_.alpha, V::exp2(V::sub(old, reference)));
    for (int r = 0; r < kUnitRows; ++r) V::store(reinterpret_cast<float*>(s_.raw) + r * 16, V::zero());
  }

  // P of one panel of a row, after which nobody needs its scores; adds to the sums in raw.
  [[gnu::always_inline]] void floating_exponentials(int r, int panel) const {
    float* sums = reinterpret_cast<float*>(s_.raw) + r * 16;
    V::store(sums, floating_exponentials(r, panel, V::set(s_.beta[r]), V::load(sums)));
  }

  // l of all rows, when the sums in raw are known.
  void add_floating_sums(const Unit& u) const {
    for (int r = 0; r < u.rows; ++r) {
      float* l = s_.l + (u.first_row + r) * 16;
      V::store(l,
               V::mul_add(V::load(l), V::set(s_.alpha[r]), V::load(reinterpret_cast<const float*>(s_.raw) + r * 16)));
    }
  }

  // Scores in s; P goes back there (f32) or to p (bf16).
  void floating(const Unit& u) {
    for (int r = 0; r < u.rows; ++r) {
      float* m = s_.m + u.first_row + r;
      const float old = *m, block = row_top(u, r), highest = block > old ? block : old;
      const float reference = highest > -std::numeric_limits<float>::infinity() ? highest : 0;
      *m = highest;
      s_.alpha[r] = old - reference;
      exponentials_floating(u, r, reference);
    }
    V::store(s_.alpha, V::exp2(V::load(s_.alpha)));
    add_floating_sums(u);
  }

  int32_t* top(const Unit& u) const { return s_.top + u.buffer * kUnitRows; }

  // Largest score of a row in s.
  [[gnu::always_inline]] float row_top(const Unit& u, int r) const {
    const float* s = s_.s + r * kBlockKeys;
    F32 top = V::load(s + u.first_key());
    for (int i = u.first_key(); i < u.end_key(); i += 16) top = V::max(top, V::load(s + i));
    return V::reduce_max(top);
  }

 private:
  // 32 keys of the block.
  void hide_edges(const Unit& u, int r, int first_key) const {
    const KeyRange range = s_.range[u.first_row + r];
    const int64_t first = u.block * kBlockKeys + first_key;
    if (range.begin <= first && range.end >= first + kHalfKeys) return;
    const auto clamped = [&](int64_t key) {
      key -= first;
      return static_cast<int16_t>(key < 0 ? 0 : key > kHalfKeys ? kHalfKeys : key);
    };
    const I16 before = V::set_i16(static_cast<int16_t>(clamped(range.begin) - 1)), end = V::set_i16(clamped(range.end));
    const I16 all = V::set_i16(-1), most = V::set_i16(32767), key = V::load_i16(kIota.data());
    int16_t* s = scores(u, r) + first_key;
    // At least 0 where hidden. 32767 less that is large there, and of visible keys, with -1, wraps to -32768.
    const I16 outside = V::max_i16(V::sub_i16(key, end), V::sub_i16(before, key));
    const I16 lowest = V::sub_i16(most, V::max_i16(outside, all));
    // The smaller of a score and ~lowest.
    V::store_i16(s, V::sub_i16(all, V::max_i16(V::sub_i16(all, V::load_i16(s)), lowest)));
  }

  int16_t* scores(const Unit& u, int r) const { return s_.s16 + (u.buffer * kUnitRows + r) * kBlockKeys; }

  // P of one row and panel: u / 8 / 32, rounded.
  [[gnu::always_inline]] void store_bytes(int r, int panel, I16 (&x)[2]) const {
    const int at = r * kBlockKeys + panel * kPanelKeys;
    if constexpr (kInPairs<V, S::kPv>) {
      V::template store_u8_rounded_apart<5>(s_.p + r / 2 * 2 * kBlockKeys + panel * 2 * kPanelKeys + r % 2 * 8, x[0],
                                            x[1]);
    } else if constexpr (V::kQuarters) {
      V::template store_u8_rounded<5>(s_.p + at, x[0], x[1]);
    } else {
      I16 p[2];
      unroll<2>([&](auto h) __attribute__((always_inline)) { p[h] = V::template round_shift_i16<5>(x[h]); });
      if constexpr (S::kPv == Element::i8w) {
        auto* words = reinterpret_cast<int16_t*>(s_.p) + at;
        V::store_i16(words, p[0]), V::store_i16(words + kHalfKeys, p[1]);
      } else {
        V::store_u8(s_.p + at, p[0], p[1]);
      }
    }
  }

  void pack_row(const Unit& u, int r, F32 reference) {
    const float* from = s_.s + r * kBlockKeys;
    int16_t* to = scores(u, r);
    // Above the reference are only rows that exact_row() computes; they must stay within the table.
    for (int i = u.first_key(); i < u.end_key(); i += 16)
      V::store_words(to + i, V::to_i32(V::min(V::sub(V::load(from + i), reference), V::zero())));
  }

  void exponentials_fixed(const Unit& u, int r, int16_t row_top) const {
    I16 sum = V::set_i16(0);
    const int whole = u.panel_end - (u.half() ? 1 : 0);
    for (int panel = u.panel_begin; panel < whole; ++panel) exponentials(u, r, panel, row_top, sum);
    if (u.half()) exponentials<1>(u, r, whole, row_top, sum);
    add_sums(u, r, sum);
  }

  // Sums of P go to raw until alpha is known. Apart, for the constants of exp2 need most of 16 registers.
  [[gnu::noinline]] void exponentials_floating(const Unit& u, int r, float reference) {
    F32 sum = V::zero();
    const int whole = u.panel_end - (u.half() ? 1 : 0);
    for (int panel = u.panel_begin; panel < whole; ++panel)
      sum = floating_exponentials(r, panel, V::set(reference), sum);
    if (u.half()) sum = floating_exponentials<1>(r, whole, V::set(reference), sum);
    V::store(reinterpret_cast<float*>(s_.raw) + r * 16, sum);
  }

  // Of one panel of a row, or its first half; returns `sum` with them.
  template <int Halves = 2>
  [[gnu::always_inline]] F32 floating_exponentials(int r, int panel, F32 top, F32 sum) const {
    float* s = s_.s + r * kBlockKeys;
    auto* p16 = reinterpret_cast<uint16_t*>(s_.p);
    unroll<Halves>([&](auto half) __attribute__((always_inline)) {
      const int i = panel * kPanelKeys + half * kHalfKeys;
      F32 a = V::exp2(V::sub(V::load(s + i), top)), b = V::exp2(V::sub(V::load(s + i + 16), top));
      if constexpr (S::kPv == Element::bf16) {
        a = to_bf16_precision(a), b = to_bf16_precision(b);
        if constexpr (kInPairs<V, S::kPv>) {
          V::store_bf16_exact_apart(p16 + r / 2 * 2 * kBlockKeys + 2 * i + r % 2 * 4, a, b);
        } else {
          V::store_bf16_exact(p16 + r * kBlockKeys + i, a, b);
        }
      } else {
        V::store(s + i, a), V::store(s + i + 16, b);
      }
      sum = V::add(sum, V::add(a, b));
    });
    return sum;
  }

  // Veltkamp's splitting: with c = x (2^16 + 1), c - (c - x) keeps the upper 8 bits, rounded.
  static F32 to_bf16_precision(F32 x) {
    const F32 c = V::mul(x, V::set(65537));
    return V::sub(c, V::sub(c, x));
  }

  const ItemState& s_;
};

}  // namespace clary
