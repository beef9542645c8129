// The vocabulary in plain C++: the executable specification of every instruction set.
//
// Kernels are written for one abstract machine with 512-bit vectors. A vector is 16 lanes of 32 bits (F32, I32) or 32
// lanes of 16 bits (I16); an instruction set with narrower registers holds it in two or four. Operations that x86
// performs inside 128-bit quarters (packing) do so here too, on every set: that costs nobody anything, since packed
// keys are laid out for it, and it makes results equal bit for bit on all of them.
//
// The exception is dot2: native bf16 dot products round in their own order, so a set that has one may differ in the
// last bits of bf16 products.
//
// Operations are calls: unrolled kernels full of copies of loops over lanes take minutes to compile.
//
//   quarter  0         1         2         3
//   F32      0 1 2 3   4 5 6 7   8 .. 11   12 .. 15
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "cpu/isa/exp2_table.h"

namespace clary {

struct Scalar {
  static constexpr const char* kName = "scalar";
  // Rows x vectors of one register tile of a product. Bound: rows * vectors + vectors + 1 registers.
  static constexpr int kTileRows = 4, kTileVectors = 4;
  static constexpr int kWideTileRows = kTileRows;  // where a step needs no temporaries beside them
  static constexpr bool kHasTiles = false;         // a matrix engine (tile_* operations)
  static constexpr bool kHasDot2 = true;           // a dot product of bf16 that is faster than f32
  static constexpr bool kBytesAsWords = false;     // no dot product of bytes that is worth its widening
  static constexpr bool kOverlaps = false;         // enough registers for products and softmax at once
  // How products take their operands. Signed keys: K as signed bytes, for sets whose dot products want equal signs.
  // Unsigned values: V with +128, for sets that have no product of unsigned by signed bytes at all. Lanes: one step of
  // a row is a lane of a Quad. Pairs: 16-bit and byte products of two rows by 8 bytes of a lane. Quarters: registers
  // hold one, so that nothing is gained by an order of keys that suits packing inside larger ones, and a vector alone
  // is a register tile's width.
  static constexpr bool kSignedKeys = false, kUnsignedValues = false, kLanes = false, kPairs = false;
  static constexpr bool kQuarters = false;

  struct F32 {
    float v[16];
  };
  struct I32 {
    int32_t v[16];
  };
  struct I16 {
    int16_t v[32];
  };

  template <class T, class F>
  static T each(F f) {
    T r;
    for (int i = 0; i < static_cast<int>(sizeof(r.v) / sizeof(r.v[0])); ++i) r.v[i] = f(i);
    return r;
  }

  // ---- memory; no alignment is required
  [[gnu::noinline]] static F32 load(const float* p) { return read<F32>(p); }
  [[gnu::noinline]] static void store(float* p, const F32& x) { std::memcpy(p, &x, sizeof x); }
  [[gnu::noinline]] static I32 load_i32(const void* p) { return read<I32>(p); }
  [[gnu::noinline]] static void store_i32(void* p, const I32& x) { std::memcpy(p, &x, sizeof x); }
  [[gnu::noinline]] static I16 load_i16(const int16_t* p) { return read<I16>(p); }
  [[gnu::noinline]] static void store_i16(int16_t* p, const I16& x) { std::memcpy(p, &x, sizeof x); }
  [[gnu::noinline]] static F32 load_f16(const uint16_t* p) {
    return each<F32>([&](int i) { return f16_to_f32(p[i]); });
  }
  [[gnu::noinline]] static F32 load_bf16(const uint16_t* p) {
    return each<F32>([&](int i) { return std::bit_cast<float>(static_cast<uint32_t>(p[i]) << 16); });
  }
  [[gnu::noinline]] static void store_f16(uint16_t* p, const F32& x) {
    for (int i = 0; i < 16; ++i) p[i] = f32_to_f16(x.v[i]);
  }
  // Round to nearest even; NaN stays NaN.
  [[gnu::noinline]] static void store_bf16(uint16_t* p, const F32& x) {
    for (int i = 0; i < 16; ++i) p[i] = f32_to_bf16(x.v[i]);
  }
  // The low byte of each lane.
  [[gnu::noinline]] static void store_i8(void* p, const I32& x) {
    for (int i = 0; i < 16; ++i) static_cast<int8_t*>(p)[i] = static_cast<int8_t>(x.v[i]);
  }
  // As signed words, saturated.
  [[gnu::noinline]] static void store_words(int16_t* p, const I32& x) {
    for (int i = 0; i < 16; ++i)
      p[i] = static_cast<int16_t>(x.v[i] < -32768 ? -32768 : x.v[i] > 32767 ? 32767 : x.v[i]);
  }
  [[gnu::noinline]] static I32 load_u8(const uint8_t* p) {
    return each<I32>([&](int i) { return p[i]; });
  }

  // ---- f32
  [[gnu::noinline]] static F32 set(float x) {
    return each<F32>([&](int) { return x; });
  }
  [[gnu::noinline]] static F32 zero() { return set(0); }
  [[gnu::noinline]] static F32 add(const F32& a, const F32& b) {
    return each<F32>([&](int i) { return a.v[i] + b.v[i]; });
  }
  [[gnu::noinline]] static F32 sub(const F32& a, const F32& b) {
    return each<F32>([&](int i) { return a.v[i] - b.v[i]; });
  }
  [[gnu::noinline]] static F32 mul(const F32& a, const F32& b) {
    return each<F32>([&](int i) { return a.v[i] * b.v[i]; });
  }
  [[gnu::noinline]] static F32 div(const F32& a, const F32& b) {
    return each<F32>([&](int i) { return a.v[i] / b.v[i]; });
  }
  // a * b + c, rounded once
  [[gnu::noinline]] static F32 mul_add(const F32& a, const F32& b, const F32& c) {
    return each<F32>([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
  }
  // Both undefined when a lane is NaN (sets differ in which operand they return).
  [[gnu::noinline]] static F32 max(const F32& a, const F32& b) {
    return each<F32>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  [[gnu::noinline]] static F32 min(const F32& a, const F32& b) {
    return each<F32>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  [[gnu::noinline]] static F32 abs(const F32& a) {
    return each<F32>([&](int i) { return std::fabs(a.v[i]); });
  }
  // a < b ? x : y; false where a or b is NaN
  [[gnu::noinline]] static F32 select_less(const F32& a, const F32& b, const F32& x, const F32& y) {
    return each<F32>([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
  }
  // Folds halves: lane i with lane i + 8, then i + 4, i + 2, i + 1.
  [[gnu::noinline]] static float reduce_add(F32 a) {
    for (int n = 8; n > 0; n /= 2)
      for (int i = 0; i < n; ++i) a.v[i] += a.v[i + n];
    return a.v[0];
  }
  // Lane i is reduce_add(x[i]).
  [[gnu::noinline]] static F32 reduce_add16(const F32 (&x)[16]) {
    return each<F32>([&](int i) { return reduce_add(x[i]); });
  }
  // to[i] = reduce_add(x[i]), for sets that have no more than 4 accumulators
  [[gnu::noinline]] static void reduce_add4(const F32 (&x)[4], float* to) {
    for (int i = 0; i < 4; ++i) to[i] = reduce_add(x[i]);
  }
  [[gnu::noinline]] static float reduce_max(F32 a) {
    for (int i = 1; i < 16; ++i) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
    return a.v[0];
  }
  [[gnu::noinline]] static F32 reduce_max16(const F32 (&x)[16]) {
    return each<F32>([&](int i) { return reduce_max(x[i]); });
  }
  // 2^x with a relative error of 1.6e-7; exactly 1 at 0 and exactly 0 below -125 (so that no denormal appears).
  // Requires x <= 126. Polynomial: minimax on [-1/2, 1/2] with the constant term fixed to 1.
  [[gnu::noinline]] static F32 exp2(const F32& x) {
    return each<F32>([&](int i) {
      if (!(x.v[i] >= -125.0f)) return 0.0f;
      const float r = std::nearbyint(x.v[i]), f = x.v[i] - r;
      float p = kExp2Poly[4];
      for (int c = 3; c >= 0; --c) p = std::fma(p, f, kExp2Poly[c]);
      return std::ldexp(std::fma(p, f, 1.0f), static_cast<int>(r));
    });
  }

  // ---- conversions
  // Nearest even; -inf gives INT32_MIN, NaN anything.
  [[gnu::noinline]] static I32 to_i32(const F32& a) {
    return each<I32>([&](int i) {
      if (!(a.v[i] > -2147483648.0f)) return INT32_MIN;
      if (a.v[i] >= 2147483648.0f) return INT32_MIN;
      return static_cast<int32_t>(std::nearbyint(a.v[i]));
    });
  }
  [[gnu::noinline]] static F32 to_f32(const I32& a) {
    return each<F32>([&](int i) { return static_cast<float>(a.v[i]); });
  }
  [[gnu::noinline]] static F32 as_f32(const I32& a) { return std::bit_cast<F32>(a); }
  [[gnu::noinline]] static I32 as_i32(const F32& a) { return std::bit_cast<I32>(a); }
  // Two vectors of floats that are exact in bf16, as 32 bf16 in natural order.
  [[gnu::noinline]] static void store_bf16_exact(uint16_t* p, const F32& a, const F32& b) {
    for (int i = 0; i < 16; ++i) {
      p[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(a.v[i]) >> 16);
      p[16 + i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(b.v[i]) >> 16);
    }
  }

  // ---- i32
  [[gnu::noinline]] static I32 set_i32(int32_t x) {
    return each<I32>([&](int) { return x; });
  }
  [[gnu::noinline]] static I32 add_i32(const I32& a, const I32& b) {
    return each<I32>(
        [&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i])); });
  }
  [[gnu::noinline]] static I32 sub_i32(const I32& a, const I32& b) {
    return each<I32>(
        [&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i])); });
  }
  [[gnu::noinline]] static I32 max_i32(const I32& a, const I32& b) {
    return each<I32>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  [[gnu::noinline]] static I32 and_i32(const I32& a, const I32& b) {
    return each<I32>([&](int i) { return a.v[i] & b.v[i]; });
  }
  [[gnu::noinline]] static I32 or_i32(const I32& a, const I32& b) {
    return each<I32>([&](int i) { return a.v[i] | b.v[i]; });
  }
  template <int n>
  [[gnu::noinline]] static I32 shift_left(const I32& a) {
    return each<I32>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << n); });
  }
  template <int n>  // logical
  [[gnu::noinline]] static I32 shift_right(const I32& a) {
    return each<I32>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> n); });
  }
  [[gnu::noinline]] static int32_t reduce_add_i32(I32 a) {
    int32_t s = 0;
    for (int32_t x : a.v) s += x;
    return s;
  }
  [[gnu::noinline]] static int32_t reduce_max_i32(I32 a) {
    int32_t m = a.v[0];
    for (int32_t x : a.v) m = x > m ? x : m;
    return m;
  }
  // Smaller of each of the 64 unsigned bytes.
  [[gnu::noinline]] static I32 min_u8(const I32& a, const I32& b) {
    uint8_t x[64], y[64];
    std::memcpy(x, &a, 64), std::memcpy(y, &b, 64);
    for (int i = 0; i < 64; ++i) x[i] = x[i] < y[i] ? x[i] : y[i];
    return read<I32>(x);
  }

  // ---- dot products: per 32-bit lane
  // acc + sum of 4 products of unsigned bytes of `u` with signed bytes of `s`; exact
  [[gnu::noinline]] static I32 dot4(const I32& acc, const I32& u, const I32& s) {
    return each<I32>([&](int i) {
      uint8_t a[4];
      int8_t b[4];
      std::memcpy(a, &u.v[i], 4), std::memcpy(b, &s.v[i], 4);
      return acc.v[i] + a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
    });
  }
  // both signed, and both unsigned; for sets with kSignedKeys and kUnsignedValues
  [[gnu::noinline]] static I32 dot4_ss(const I32& acc, const I32& a, const I32& b) {
    return each<I32>([&](int i) { return dot_bytes<int8_t, int8_t>(acc.v[i], &a.v[i], &b.v[i], 4); });
  }
  [[gnu::noinline]] static I32 dot4_uu(const I32& acc, const I32& a, const I32& b) {
    return each<I32>([&](int i) { return dot_bytes<uint8_t, uint8_t>(acc.v[i], &a.v[i], &b.v[i], 4); });
  }
  // acc + the products of the low and of the high signed words; for sets with kBytesAsWords
  [[gnu::noinline]] static I32 dot2_i16(const I32& acc, const I32& a, const I32& b) {
    return each<I32>([&](int i) {
      int16_t x[2], y[2];
      std::memcpy(x, &a.v[i], 4), std::memcpy(y, &b.v[i], 4);
      const auto sum = static_cast<uint32_t>(x[0] * y[0]) + static_cast<uint32_t>(x[1] * y[1]);
      return static_cast<int32_t>(static_cast<uint32_t>(acc.v[i]) + sum);
    });
  }
  // acc + the low and then the high product of bf16 pairs, rounded after each
  [[gnu::noinline]] static F32 dot2(const F32& acc, const I32& a, const I32& b) {
    return each<F32>([&](int i) {
      const auto x = static_cast<uint32_t>(a.v[i]), y = static_cast<uint32_t>(b.v[i]);
      const float low = std::fma(std::bit_cast<float>(x << 16), std::bit_cast<float>(y << 16), acc.v[i]);
      return std::fma(std::bit_cast<float>(x & 0xffff0000u), std::bit_cast<float>(y & 0xffff0000u), low);
    });
  }

  // ---- four steps of a row; for sets with kLanes
  struct Quad {
    int32_t v[4];
  };
  [[gnu::noinline]] static Quad load_quad(const uint32_t* p) { return read<Quad>(p); }
  template <int L>
  [[gnu::noinline]] static F32 mul_add_lane(const F32& x, const Quad& q, const F32& acc) {
    return mul_add(x, as_f32(set_i32(q.v[L])), acc);
  }
  template <int L>
  [[gnu::noinline]] static I32 dot4_ss_lane(const I32& acc, const I32& x, const Quad& q) {
    return dot4_ss(acc, x, set_i32(q.v[L]));
  }
  template <int L>
  [[gnu::noinline]] static I32 dot4_uu_lane(const I32& acc, const I32& x, const Quad& q) {
    return dot4_uu(acc, x, set_i32(q.v[L]));
  }

  // ---- pairs of rows; for sets with kPairs. A Quad holds two steps of row 0, then of row 1; a quarter of a packed
  // vector two steps of lane 0, then of lane 1; a quarter of an accumulator the sums (row 0, lane 0), (0, 1), (1, 0),
  // (1, 1).
  // Two steps of 16 lanes to 8 lanes of both steps, and the other 8.
  [[gnu::noinline]] static void interleave(I32& x, I32& y) {
    const I32 p = x, q = y;
    for (int i = 0; i < 8; ++i) {
      x.v[2 * i] = p.v[i], x.v[2 * i + 1] = q.v[i];
      y.v[2 * i] = p.v[8 + i], y.v[2 * i + 1] = q.v[8 + i];
    }
  }
  // Accumulators of lanes 0 to 7 and 8 to 15 to those of the two rows
  template <class T>
  [[gnu::noinline]] static void split_rows(T& x, T& y) {
    const T p = x, q = y;
    for (int i = 0; i < 16; ++i) {
      const T& from = i < 8 ? p : q;
      const int at = i % 8 / 2 * 4 + i % 2;
      x.v[i] = from.v[at], y.v[i] = from.v[at + 2];
    }
  }
  [[gnu::noinline]] static I32 dot8_ss(const I32& acc, const Quad& rows, const I32& packed) {
    return dot8<int8_t>(acc, rows, packed);
  }
  [[gnu::noinline]] static I32 dot8_us(const I32& acc, const Quad& rows, const I32& packed) {
    return dot8<uint8_t>(acc, rows, packed);
  }
  [[gnu::noinline]] static F32 dot4_bf16(const F32& acc, const Quad& rows, const I32& packed) {
    return each<F32>([&](int i) {
      F32 sum = set(acc.v[i]);
      for (int step = 0; step < 2; ++step)
        sum = dot2(sum, set_i32(packed.v[i / 4 * 4 + i % 2 * 2 + step]), set_i32(rows.v[i % 4 / 2 * 2 + step]));
      return sum.v[0];
    });
  }

  // ---- transposes
  // Quarters of x and of y in turns.
  [[gnu::noinline]] static void interleave_quarters(F32& x, F32& y) {
    const F32 a = x, b = y;
    for (int i = 0; i < 16; ++i) {
      const F32& from = i / 4 % 2 == 0 ? a : b;
      x.v[i] = from.v[i / 8 * 4 + i % 4], y.v[i] = from.v[8 + i / 8 * 4 + i % 4];
    }
  }
  // x as a 16 x 16 matrix of lanes
  [[gnu::noinline]] static void transpose16(I32 (&x)[16]) {
    for (int a = 0; a < 16; ++a)
      for (int b = 0; b < a; ++b) std::swap(x[a].v[b], x[b].v[a]);
  }

  // ---- i16
  [[gnu::noinline]] static I16 set_i16(int16_t x) {
    return each<I16>([&](int) { return x; });
  }
  [[gnu::noinline]] static I16 add_i16(const I16& a, const I16& b) {
    return each<I16>([&](int i) { return static_cast<int16_t>(a.v[i] + b.v[i]); });
  }
  [[gnu::noinline]] static I16 sub_i16(const I16& a, const I16& b) {
    return each<I16>([&](int i) { return static_cast<int16_t>(a.v[i] - b.v[i]); });
  }
  [[gnu::noinline]] static I16 max_i16(const I16& a, const I16& b) {
    return each<I16>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  template <int n>  // logical
  [[gnu::noinline]] static I16 shift_right_i16(const I16& a) {
    return each<I16>([&](int i) { return static_cast<int16_t>(static_cast<uint16_t>(a.v[i]) >> n); });
  }
  // x / 2^n, rounded to nearest (upwards from the middle), of 15-bit numbers
  template <int n>
  [[gnu::noinline]] static I16 round_shift_i16(const I16& a) {
    return each<I16>([&](int i) { return static_cast<int16_t>((a.v[i] + (1 << (n - 1))) >> n); });
  }
  [[gnu::noinline]] static int16_t reduce_max_i16(I16 a) {
    int16_t m = a.v[0];
    for (int16_t x : a.v) m = x > m ? x : m;
    return m;
  }
  // Saturating, by quarters: quarter L of the result is a's quarter L, then b's.
  [[gnu::noinline]] static I16 pack_i16(const I32& a, const I32& b) {
    return each<I16>([&](int i) {
      const int quarter = i / 8, lane = i % 8;
      const int32_t x = lane < 4 ? a.v[4 * quarter + lane] : b.v[4 * quarter + lane - 4];
      return static_cast<int16_t>(x < -32768 ? -32768 : x > 32767 ? 32767 : x);
    });
  }
  // Saturating to 0..255: 64 bytes.
  [[gnu::noinline]] static void store_u8(uint8_t* p, const I16& a, const I16& b) {
    for (int i = 0; i < 64; ++i) {
      const int16_t x = i < 32 ? a.v[i] : b.v[i - 32];
      p[i] = static_cast<uint8_t>(x < 0 ? 0 : x > 255 ? 255 : x);
    }
  }
  // 8160 * 2^(-d/64): kExp2Table[d mod 64] / 2^(d / 64), rounded down, / 8, rounded. Requires 0 <= d < 1024.
  [[gnu::noinline]] static I16 exp2_i16(const I16& d) {
    return each<I16>(
        [&](int i) { return static_cast<int16_t>(((kExp2Table.v[d.v[i] & 63] >> (d.v[i] >> 6)) + 4) >> 3); });
  }
  // ---- for sets with kQuarters
  // 65280 * 2^((w + 128) / 64) / 8, rounded: (exp2_i16(-128 - w) + 4) / 8. Requires -1151 <= w <= -128.
  [[gnu::noinline]] static I16 exp2_eighths(const I16& w) {
    return each<I16>([&](int i) {
      const int d = -128 - w.v[i];
      return static_cast<int16_t>(((kExp2Table.v[d & 63] >> (d >> 6)) + 4) >> 3);
    });
  }
  // Words below 2^(8 + kBits) over 2^kBits, rounded: 64 bytes.
  template <int kBits>
  [[gnu::noinline]] static void store_u8_rounded(uint8_t* p, const I16& a, const I16& b) {
    store_u8_steps<kBits, 8>(p, a, b);
  }
  // the same with 8 bytes left out after every 8, for the other row of a pair
  template <int kBits>
  [[gnu::noinline]] static void store_u8_rounded_apart(uint8_t* p, const I16& a, const I16& b) {
    store_u8_steps<kBits, 16>(p, a, b);
  }
  // As store_bf16_exact, with 4 words left out after every 4.
  [[gnu::noinline]] static void store_bf16_exact_apart(uint16_t* p, const F32& a, const F32& b) {
    uint16_t words[32];
    store_bf16_exact(words, a, b);
    for (int i = 0; i < 32; i += 4) std::memcpy(p + 2 * i, words + i, 8);
  }
  // Sums of integers that begin at small_sums() and stay within 2^22 of it, as floats.
  [[gnu::noinline]] static I32 small_sums() { return set_i32(0); }
  [[gnu::noinline]] static F32 to_f32_small(const I32& x) { return to_f32(x); }
  // to_i32(x) as words; each fits.
  [[gnu::noinline]] static void store_small_words(int16_t* p, const F32& x) { store_words(p, to_i32(x)); }

  // ---- sums
  // Unsigned: lane 2i + lane 2i+1, as 16 lanes of 32 bits
  [[gnu::noinline]] static I32 sum_pairs_u16(const I16& a) {
    return each<I32>([&](int i) { return static_cast<uint16_t>(a.v[2 * i]) + static_cast<uint16_t>(a.v[2 * i + 1]); });
  }

  // ---- for the compiler: the value is needed in registers here and may have changed
  static void keep(F32& x) { asm volatile("" : "+m"(x)); }
  static void keep(I32& x) { asm volatile("" : "+m"(x)); }

  // ---- helpers of this header
  template <class A, class B>
  static int32_t dot_bytes(int32_t acc, const int32_t* x, const int32_t* y, int count) {
    A a[8];
    B b[8];
    std::memcpy(a, x, static_cast<size_t>(count)), std::memcpy(b, y, static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) acc += a[i] * b[i];
    return acc;
  }
  template <int kBits, int kStep>
  static void store_u8_steps(uint8_t* p, I16 a, I16 b) {
    for (int i = 0; i < 64; ++i) {
      const int16_t x = i < 32 ? a.v[i] : b.v[i - 32];
      p[i / 8 * kStep + i % 8] = static_cast<uint8_t>((x + (1 << (kBits - 1))) >> kBits);
    }
  }
  template <class A>
  static I32 dot8(I32 acc, Quad rows, I32 packed) {
    return each<I32>([&](int i) {
      return dot_bytes<A, int8_t>(acc.v[i], &rows.v[i % 4 / 2 * 2], &packed.v[i / 4 * 4 + i % 2 * 2], 8);
    });
  }
  template <class T>
  static T read(const void* p) {
    T r;
    std::memcpy(&r, p, sizeof r);
    return r;
  }
  static uint16_t f32_to_bf16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
  }
  static float f16_to_f32(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    const uint32_t quiet = mantissa ? 0x400000u : 0;  // conversions by hardware leave no signalling NaN
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | quiet | (mantissa << 13));
    const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                          : std::bit_cast<float>(((exponent + 112) << 23) | (mantissa << 13));
    return sign ? -magnitude : magnitude;
  }
  static uint16_t f32_to_f16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
    const float a = std::fabs(x);
    if (!(a < std::numeric_limits<float>::infinity())) {
      return static_cast<uint16_t>(sign | (a > 0 ? 0x7c00 : 0x7e00 | (bits >> 13 & 0x3ff)));
    }
    if (a >= 65520.0f) return sign | 0x7c00;  // rounds to infinity
    // Below 2^-14 halves are multiples of 2^-24; above, the exponent decides the step.
    if (a < 0x1p-14f) return static_cast<uint16_t>(sign | static_cast<int>(std::nearbyint(a * 0x1p24f)));
    const uint32_t rounded = (bits & 0x7fffffffu) + 0xfffu + ((bits >> 13) & 1);
    return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
  }
};

}  // namespace clary
