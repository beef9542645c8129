// What masks, softcap, ALiBi and edges do to the natural-order scores of a unit, in the order of docs/semantics.md:
// softcap, ALiBi, additive mask, visibility. Hidden scores become -inf.
#pragma once

#include <limits>

#include "kernel/scores.h"
#include "quant/rows.h"

namespace clary {

template <class V, class S>
class Rules {
 public:
  using F32 = typename V::F32;
  using I32 = typename V::I32;

  Rules(const AttendArgs& args, const ItemState& state) : a_(args), p_(*args.problem), s_(state) {
    offset_ = p_.offset(args.sequence);
    alignas(64) float iota[16];
    for (int i = 0; i < 16; ++i) iota[i] = static_cast<float>(i);
    iota_ = V::load(iota);
  }

  enum class MaskState : uint8_t { hides_all, hides_some, shows_all };

  // What the mask does to the visible panels of a unit (a boolean one: to its whole block).
  MaskState look_at_mask(const Unit& u) const {
    if (p_.mask.kind == Mask::Kind::none || a_.mask_folded) return MaskState::shows_all;
    if (p_.mask.kind == Mask::Kind::boolean)
      return static_cast<MaskState>(s_.mask_states[u.first_row / kUnitRows * blocks() + u.block - a_.block_begin]);
    bool any_hidden = false, any_shown = false;
    for (int r = 0; r < u.real_rows && !(any_hidden && any_shown); ++r) look_at_additive(u, r, any_hidden, any_shown);
    return state(any_hidden, any_shown);
  }

  // Reads the boolean mask of all rows and blocks of the item, once and row by row, as it lies in memory.
  void survey_mask() {
    if (p_.mask.kind != Mask::Kind::boolean || a_.mask_folded) return;
    for (int row = 0; row < a_.count; row += kUnitRows) {
      const int rows = a_.count - row < kUnitRows ? a_.count - row : kUnitRows;
      for (int64_t i = 0; i < blocks(); ++i) {
        V::store_i32(s_.mask_bytes + i * 32, V::set_i32(-1));
        V::store_i32(s_.mask_bytes + i * 32 + 16, V::set_i32(0));
      }
      for (int r = row; r < row + rows; ++r) survey_row(r);
      for (int64_t i = 0; i < blocks(); ++i) {
        bool any_hidden = false, any_shown = false;
        const auto* bytes = reinterpret_cast<const uint8_t*>(s_.mask_bytes + i * 32);
        for (int b = 0; b < 64; ++b) any_hidden |= bytes[b] == 0, any_shown |= bytes[64 + b] != 0;
        s_.mask_states[row / kUnitRows * blocks() + i] = static_cast<uint8_t>(state(any_hidden, any_shown));
      }
    }
  }

  // Applies everything to the scores of a unit.
  void apply(const Unit& u, bool with_mask) const {
    for (int r = 0; r < u.real_rows; ++r) {
      if (p_.softcap > 0) apply_softcap(u, r);
      if (p_.alibi_slopes != nullptr) apply_alibi(u, r);
      if (with_mask && p_.mask.kind != Mask::Kind::none) apply_mask(u, r);
      apply_range(u, r);
    }
  }

 private:
  static constexpr float kUnit = kLog2e * S::kUnitsPerOctave;  // units per nat
  static constexpr float kHidden = -std::numeric_limits<float>::infinity();

  // Of the sequence.
  static int64_t first_key(const Unit& u) { return u.block * kBlockKeys + u.first_key(); }
  // Keys of the unit's panels that exist.
  int existing_keys(const Unit& u) const {
    const int64_t left = a_.sequence.len_k - first_key(u), most = u.keys();
    return static_cast<int>(left < most ? left : most);
  }
  // Element index of the mask at the unit's first visible key.
  int64_t mask_index(const Unit& u, int r) const {
    const Row& row = a_.rows[u.first_row + r];
    return a_.sequence_index * p_.mask.batch + row.head * p_.mask.head + row.query * p_.mask.query +
           first_key(u) * p_.mask.key;
  }

  int64_t blocks() const { return a_.block_end - a_.block_begin; }
  static MaskState state(bool any_hidden, bool any_shown) {
    return !any_shown ? MaskState::hides_all : any_hidden ? MaskState::hides_some : MaskState::shows_all;
  }

  // Adds one row to the smallest and the or-ed bytes of every block.
  void survey_row(int r) {
    const Row& row = a_.rows[r];
    const int64_t first = a_.block_begin * kBlockKeys;
    const auto* bytes = static_cast<const uint8_t*>(p_.mask.data) + a_.sequence_index * p_.mask.batch +
                        row.head * p_.mask.head + row.query * p_.mask.query + first * p_.mask.key;
    for (int64_t i = 0; i < blocks(); ++i) {
      uint32_t* to = s_.mask_bytes + i * 32;
      I32 smallest = V::load_i32(to), any = V::load_i32(to + 16);
      const auto add = [&](I32 x) { smallest = V::min_u8(smallest, x), any = V::or_i32(any, x); };
      const int64_t left = a_.sequence.len_k - first - i * kBlockKeys, count = left < kBlockKeys ? left : kBlockKeys;
      if (p_.mask.key == 0) {
        add(V::set_i32(bytes[0] * 0x01010101));
      } else {
        int64_t key = 0;
        for (; key + 64 <= count; key += 64) add(V::load_i32(bytes + i * kBlockKeys + key));
        if (key < count) add(tail(bytes + i * kBlockKeys + key, count - key));
      }
      V::store_i32(to, smallest), V::store_i32(to + 16, any);
    }
  }

  // Fewer than 64 bytes, the first one repeated to fill the vector.
  static I32 tail(const uint8_t* bytes, int64_t count) {
    uint8_t copy[64];
    std::memset(copy, bytes[0], sizeof copy);
    std::memcpy(copy, bytes, static_cast<size_t>(count));
    return V::load_i32(copy);
  }

  // Zeros show and change nothing; anything else but -inf both shows and changes.
  void look_at_additive(const Unit& u, int r, bool& any_hidden, bool& any_shown) const {
    const int64_t first = mask_index(u, r);
    const int count = p_.mask.key == 0 ? 1 : existing_keys(u);
    const char* data = static_cast<const char*>(p_.mask.data) + first * size_bytes(p_.mask.dtype);
    int i = 0;
    const int per_vector = 64 / size_bytes(p_.mask.dtype);
    I32 bits = V::set_i32(0);
    for (; i + per_vector <= count; i += per_vector)
      bits = V::or_i32(bits, V::load_i32(data + i * size_bytes(p_.mask.dtype)));
    if (i > 0 && V::reduce_max_i32(bits) == 0 && V::reduce_max_i32(V::template shift_right<16>(bits)) == 0)
      any_shown = true;
    else
      i = 0;
    for (; i < count && !(any_hidden && any_shown); ++i) {
      const double x = element(p_.mask.data, p_.mask.dtype, first + i);
      if (x != 0) any_hidden = true;
      if (x != static_cast<double>(kHidden)) any_shown = true;
    }
  }

  // c * tanh(s / c) with tanh(x) = 1 - 2 / (e^2x + 1): absolute error c * 6e-8, as that of any f32 score near c. What
  // smoothing K took from the row has to be in the score here.
  void apply_softcap(const Unit& u, int r) const {
    const float cap = p_.softcap * kUnit;
    const F32 constant = V::set(s_.constant[u.first_row + r]), scale = V::set(cap), one = V::set(1);
    // e^2x = 2^(2 log2(e) x); beyond 60 octaves tanh is 1 in f32
    const F32 to_octaves = V::set(2 * kLog2e / cap), limit = V::set(60);
    const F32 lowest = V::set(-std::numeric_limits<float>::max());
    for_each_vector(u, r, [&](int, F32 s) {
      F32 x = V::mul(V::add(s, constant), to_octaves);
      x = V::max(V::min(x, limit), V::sub(V::zero(), limit));
      const F32 tanh = V::sub(one, V::div(V::set(2), V::add(V::exp2(x), one)));
      return V::select_less(s, lowest, s, V::mul(scale, tanh));
    });
  }

  void apply_alibi(const Unit& u, int r) const {
    const F32 slope = V::set(-s_.slope[u.first_row + r]);
    // Distances are taken from the first key of the unit: exact in f32 up to 2^24.
    const F32 aligned = V::set(static_cast<float>(a_.rows[u.first_row + r].query + offset_ - first_key(u)));
    for_each_vector(u, r, [&](int i, F32 s) {
      const F32 j = V::add(iota_, V::set(static_cast<float>(i)));
      return V::mul_add(slope, V::abs(V::sub(aligned, j)), s);
    });
  }

  void apply_mask(const Unit& u, int r) const {
    const int64_t first = mask_index(u, r);
    const int count = existing_keys(u), padded = static_cast<int>(round_up(count, 16));
    alignas(64) float values[kBlockKeys];
    if (p_.mask.kind == Mask::Kind::boolean) {
      read_boolean(static_cast<const uint8_t*>(p_.mask.data) + first, count, values);
    } else if (!read_additive(first, count, values)) {
      s_.exact[u.first_row + r] = 1;
    }
    for (int i = padded; i < u.keys(); i += 16) V::store(values + i, V::zero());
    for_each_vector(u, r, [&](int i, F32 s) { return V::add(s, V::load(values + i)); });
  }

  void read_boolean(const uint8_t* bytes, int count, float* values) const {
    alignas(64) uint8_t copy[kBlockKeys] = {};
    if (p_.mask.key == 0) {
      std::memset(copy, bytes[0], static_cast<size_t>(count));
    } else {
      std::memcpy(copy, bytes, static_cast<size_t>(count));
    }
    const F32 half = V::set(0.5f), hidden = V::set(kHidden);
    for (int i = 0; i < count; i += 16)
      V::store(values + i, V::select_less(V::to_f32(V::load_u8(copy + i)), half, hidden, V::zero()));
  }

  // In units. A finite value stays finite: it hides nothing, however negative. False if there is a NaN or +inf.
  bool read_additive(int64_t first, int count, float* values) const {
    const char* data = static_cast<const char*>(p_.mask.data) + first * size_bytes(p_.mask.dtype);
    if (p_.mask.key == 0) {
      alignas(64) float one[16];
      Rows<V>::read(data, p_.mask.dtype, 1, one);
      for (int i = 0; i < count; i += 16) V::store(values + i, V::set(one[0]));
    } else {
      Rows<V>::read(data, p_.mask.dtype, count, values);
    }
    const F32 lowest = V::set(-3.0e38f), least = V::set(-std::numeric_limits<float>::max());
    const F32 infinity = V::set(-kHidden), one = V::set(1);
    F32 bad = V::zero();
    for (int i = 0; i < count; i += 16) {
      const F32 x = V::load(values + i);
      bad = V::add(bad, V::select_less(x, infinity, V::zero(), one));
      V::store(values + i, V::select_less(x, least, x, V::max(V::mul(x, V::set(kUnit)), lowest)));
    }
    return V::reduce_max(bad) == 0;
  }

  void apply_range(const Unit& u, int r) const {
    const KeyRange range = s_.range[u.first_row + r];
    const int64_t first = first_key(u), count = u.keys();
    if (range.begin <= first && range.end >= first + count) return;
    const auto clamp = [&](int64_t x) { return static_cast<float>(x < 0 ? 0 : x > count ? count : x); };
    const F32 begin = V::set(clamp(range.begin - first)), end = V::set(clamp(range.end - first)),
              hidden = V::set(kHidden);
    for_each_vector(u, r, [&](int i, F32 s) {
      const F32 j = V::add(iota_, V::set(static_cast<float>(i)));
      return V::select_less(j, begin, hidden, V::select_less(j, end, s, hidden));
    });
  }

  // s <- body(index of the first lane among the unit's keys, s)
  template <class Body>
  [[gnu::always_inline]] void for_each_vector(const Unit& u, int r, Body&& body) const {
    float* s = s_.s + r * kBlockKeys + u.first_key();
    const int count = u.keys();
    for (int i = 0; i < count; i += 16) V::store(s + i, body(i, V::load(s + i)));
  }

  const AttendArgs& a_;
  const Problem& p_;
  const ItemState& s_;
  int64_t offset_ = 0;
  F32 iota_;
};

}  // namespace clary
