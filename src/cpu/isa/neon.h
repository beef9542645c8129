// 64-bit Arm with dot products (ARMv8.2), and with i8mm and bf16 (ARMv8.6) over it: a vector is four q registers, one
// per quarter. Meanings: scalar.h. always_inline: see avx2.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "cpu/isa/exp2_table.h"

namespace clary {

// 32640 * 2^(i/64), rounded like its double among the entries of kExp2Table: low bytes, high bytes.
struct Exp2RisingBytes {
  alignas(64) uint8_t v[2][64];
};

constexpr Exp2RisingBytes make_exp2_rising_bytes() {
  Exp2RisingBytes table{};
  for (int i = 0; i < 64; ++i) {
    const int entry = i == 0 ? kExp2Table.v[0] / 2 : kExp2Table.v[64 - i];
    table.v[0][i] = static_cast<uint8_t>(entry), table.v[1][i] = static_cast<uint8_t>(entry >> 8);
  }
  return table;
}

inline constexpr Exp2RisingBytes kExp2RisingBytes = make_exp2_rising_bytes();

struct Neon {
  static constexpr const char* kName = "neon";
  // 16 accumulators: 4 pipes times the 4 cycles of a multiply-add. Beside them a vector, the next one, and four steps
  // of each row: 16 + 8 + 4 of 32 registers.
  static constexpr int kTileRows = 4, kTileVectors = 1;
  static constexpr int kWideTileRows = kTileRows;
  static constexpr bool kHasTiles = false;
  static constexpr bool kHasDot2 = false;
  static constexpr bool kBytesAsWords = false;
  static constexpr bool kOverlaps = false;  // enough registers for products and softmax at once
  static constexpr bool kSignedKeys = true, kUnsignedValues = true, kLanes = true, kPairs = false;
  static constexpr bool kQuarters = true;

  struct F32 {
    float32x4_t a, b, c, d;
  };
  struct I32 {
    int32x4_t a, b, c, d;
  };
  struct I16 {
    int16x8_t a, b, c, d;
  };

  // ---- memory
  static F32 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
  static void store(float* p, F32 x) {
    vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d);
  }
  // By bytes: the pointer may have any alignment.
  static I32 load_i32(const void* p) {
    const auto* q = static_cast<const uint8_t*>(p);
    return {vreinterpretq_s32_u8(vld1q_u8(q)), vreinterpretq_s32_u8(vld1q_u8(q + 16)),
            vreinterpretq_s32_u8(vld1q_u8(q + 32)), vreinterpretq_s32_u8(vld1q_u8(q + 48))};
  }
  static void store_i32(void* p, I32 x) {
    auto* q = static_cast<uint8_t*>(p);
    vst1q_u8(q, vreinterpretq_u8_s32(x.a)), vst1q_u8(q + 16, vreinterpretq_u8_s32(x.b));
    vst1q_u8(q + 32, vreinterpretq_u8_s32(x.c)), vst1q_u8(q + 48, vreinterpretq_u8_s32(x.d));
  }
  static I16 load_i16(const int16_t* p) {
    return {vld1q_s16(p), vld1q_s16(p + 8), vld1q_s16(p + 16), vld1q_s16(p + 24)};
  }
  static void store_i16(int16_t* p, I16 x) {
    vst1q_s16(p, x.a), vst1q_s16(p + 8, x.b), vst1q_s16(p + 16, x.c), vst1q_s16(p + 24, x.d);
  }
  static F32 load_f16(const uint16_t* p) {
    auto f = [p](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + i))); };
    return {f(0), f(4), f(8), f(12)};
  }
  static F32 load_bf16(const uint16_t* p) {
    auto f = [p](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + i), 16)); };
    return {f(0), f(4), f(8), f(12)};
  }
  static void store_f16(uint16_t* p, F32 x) {
    auto f = [p](int i, float32x4_t v) { vst1_u16(p + i, vreinterpret_u16_f16(vcvt_f16_f32(v))); };
    f(0, x.a), f(4, x.b), f(8, x.c), f(12, x.d);
  }
  [[gnu::always_inline]] static void store_bf16(uint16_t* p, F32 x) {
    store_high_words(p, each<F32>([](float32x4_t v) { return vreinterpretq_f32_u32(round_to_bf16(v)); }, x));
  }
  static void store_i8(void* p, I32 x) {
    const int16x8_t low = vcombine_s16(vmovn_s32(x.a), vmovn_s32(x.b));
    const int16x8_t high = vcombine_s16(vmovn_s32(x.c), vmovn_s32(x.d));
    vst1q_s8(static_cast<int8_t*>(p), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  }
  static void store_words(int16_t* p, I32 x) {
    vst1q_s16(p, vqmovn_high_s32(vqmovn_s32(x.a), x.b)), vst1q_s16(p + 8, vqmovn_high_s32(vqmovn_s32(x.c), x.d));
  }
  static I32 load_u8(const uint8_t* p) {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_high_u16(low)),
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_high_u16(high))};
  }

  // ---- f32
  static void keep(F32& x) { asm volatile("" : "+w"(x.a), "+w"(x.b), "+w"(x.c), "+w"(x.d)); }
  static void keep(I32& x) { asm volatile("" : "+w"(x.a), "+w"(x.b), "+w"(x.c), "+w"(x.d)); }

  static F32 set(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)}; }
  static F32 zero() { return set(0); }
  static F32 add(F32 x, F32 y) {
    return each<F32>([](auto a, auto b) { return vaddq_f32(a, b); }, x, y);
  }
  static F32 sub(F32 x, F32 y) {
    return each<F32>([](auto a, auto b) { return vsubq_f32(a, b); }, x, y);
  }
  static F32 mul(F32 x, F32 y) {
    return each<F32>([](auto a, auto b) { return vmulq_f32(a, b); }, x, y);
  }
  static F32 div(F32 x, F32 y) {
    return each<F32>([](auto a, auto b) { return vdivq_f32(a, b); }, x, y);
  }
  static F32 mul_add(F32 x, F32 y, F32 z) {
    return each<F32>([](auto a, auto b, auto c) { return vfmaq_f32(c, a, b); }, x, y, z);
  }
  // Not fmax and fmin, which order -0 before +0.
  static F32 max(F32 x, F32 y) {
    return each<F32>([](auto a, auto b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }, x, y);
  }
  static F32 min(F32 x, F32 y) {
    return each<F32>([](auto a, auto b) { return vbslq_f32(vcltq_f32(a, b), a, b); }, x, y);
  }
  static F32 abs(F32 x) {
    return each<F32>([](auto a) { return vabsq_f32(a); }, x);
  }
  static F32 select_less(F32 a, F32 b, F32 x, F32 y) {
    return each<F32>([](auto p, auto q, auto r, auto s) { return vbslq_f32(vcltq_f32(p, q), r, s); }, a, b, x, y);
  }
  [[gnu::always_inline]] static float reduce_add(F32 x) {
    const float32x4_t q = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    const float32x2_t h = vadd_f32(vget_low_f32(q), vget_high_f32(q));
    return vget_lane_f32(vpadd_f32(h, h), 0);
  }
  [[gnu::always_inline]] static void reduce_add4(const F32 (&x)[4], float* to) { vst1q_f32(to, add4(x)); }
  [[gnu::always_inline]] static F32 reduce_add16(const F32 (&x)[16]) {
    return {add4(x), add4(x + 4), add4(x + 8), add4(x + 12)};
  }
  [[gnu::always_inline]] static F32 reduce_max16(const F32 (&x)[16]) {
    auto quarters = [](const F32& v) { return vmaxq_f32(vmaxq_f32(v.a, v.b), vmaxq_f32(v.c, v.d)); };
    auto four = [&](int i) {
      return vpmaxq_f32(vpmaxq_f32(quarters(x[i]), quarters(x[i + 1])),
                        vpmaxq_f32(quarters(x[i + 2]), quarters(x[i + 3])));
    };
    return {four(0), four(4), four(8), four(12)};
  }
  static float reduce_max(F32 x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.b), vmaxq_f32(x.c, x.d))); }
  [[gnu::always_inline]] static F32 exp2(F32 x) {
    return each<F32>([](float32x4_t v) { return exp2_128(v); }, x);
  }

  // ---- conversions
  // Sums of small integers that began at small_sums(), as floats: a subtraction, where scvtf takes two of four pipes
  // twice.
  static I32 small_sums() { return as_i32(set(kIntegers)); }
  static F32 to_f32_small(I32 x) { return sub(as_f32(x), set(kIntegers)); }
  static I32 to_i32(F32 x) {
    return each<I32>([](auto a) { return vcvtnq_s32_f32(a); }, x);
  }
  static F32 to_f32(I32 x) {
    return each<F32>([](auto a) { return vcvtq_f32_s32(a); }, x);
  }
  static F32 as_f32(I32 x) {
    return each<F32>([](auto a) { return vreinterpretq_f32_s32(a); }, x);
  }
  static I32 as_i32(F32 x) {
    return each<I32>([](auto a) { return vreinterpretq_s32_f32(a); }, x);
  }
  static void store_bf16_exact(uint16_t* p, F32 a, F32 b) { store_high_words(p, a), store_high_words(p + 16, b); }

  // ---- i32
  static I32 set_i32(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x)}; }
  static I32 add_i32(I32 x, I32 y) {
    return each<I32>([](auto a, auto b) { return vaddq_s32(a, b); }, x, y);
  }
  static I32 sub_i32(I32 x, I32 y) {
    return each<I32>([](auto a, auto b) { return vsubq_s32(a, b); }, x, y);
  }
  static I32 max_i32(I32 x, I32 y) {
    return each<I32>([](auto a, auto b) { return vmaxq_s32(a, b); }, x, y);
  }
  static I32 and_i32(I32 x, I32 y) {
    return each<I32>([](auto a, auto b) { return vandq_s32(a, b); }, x, y);
  }
  static I32 or_i32(I32 x, I32 y) {
    return each<I32>([](auto a, auto b) { return vorrq_s32(a, b); }, x, y);
  }
  template <int n>
  static I32 shift_left(I32 x) {
    return each<I32>([](auto a) { return vshlq_n_s32(a, n); }, x);
  }
  template <int n>
  static I32 shift_right(I32 x) {
    return each<I32>([](auto a) { return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), n)); }, x);
  }
  static int32_t reduce_add_i32(I32 x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
  static int32_t reduce_max_i32(I32 x) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.b), vmaxq_s32(x.c, x.d))); }
  static I32 min_u8(I32 x, I32 y) {
    auto min = [](int32x4_t a, int32x4_t b) {
      return vreinterpretq_s32_u8(vminq_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b)));
    };
    return each<I32>(min, x, y);
  }

  // ---- dot products
  // sdot and udot have operands of one sign: codes are packed to suit.
  static I32 dot4_ss(I32 acc, I32 a, I32 b) {
    auto dot = [](int32x4_t sum, int32x4_t x, int32x4_t y) {
      return vdotq_s32(sum, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(y));
    };
    return each<I32>(dot, acc, a, b);
  }
  static I32 dot4_uu(I32 acc, I32 a, I32 b) {
    auto dot = [](int32x4_t sum, int32x4_t x, int32x4_t y) {
      return as_signed(vdotq_u32(as_unsigned(sum), vreinterpretq_u8_s32(x), vreinterpretq_u8_s32(y)));
    };
    return each<I32>(dot, acc, a, b);
  }

  // ---- four steps of a row: a multiply-add takes its lane, so that no broadcast is on the vector pipes
  using Quad = int32x4_t;
  static Quad load_quad(const uint32_t* p) { return as_signed(vld1q_u32(p)); }
  template <int L>
  static F32 mul_add_lane(F32 x, Quad q, F32 acc) {
    const float32x4_t row = vreinterpretq_f32_s32(q);
    return each<F32>([&](auto a, auto sum) { return vfmaq_laneq_f32(sum, a, row, L); }, x, acc);
  }
  template <int L>
  static I32 dot4_ss_lane(I32 acc, I32 x, Quad q) {
    const int8x16_t row = vreinterpretq_s8_s32(q);
    return each<I32>([&](auto sum, auto a) { return vdotq_laneq_s32(sum, vreinterpretq_s8_s32(a), row, L); }, acc, x);
  }
  template <int L>
  static I32 dot4_uu_lane(I32 acc, I32 x, Quad q) {
    auto dot = [&](auto sum, auto a) {
      return as_signed(vdotq_laneq_u32(as_unsigned(sum), vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(q), L));
    };
    return each<I32>(dot, acc, x);
  }

  // ---- transposes
  [[gnu::always_inline]] static void transpose_quarters(F32 (&x)[4]) {
    const F32 p = x[0], q = x[1], r = x[2], s = x[3];
    x[0] = {p.a, q.a, r.a, s.a}, x[1] = {p.b, q.b, r.b, s.b};
    x[2] = {p.c, q.c, r.c, s.c}, x[3] = {p.d, q.d, r.d, s.d};
  }
  [[gnu::always_inline]] static void transpose16(I32 (&x)[16]) {
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {  // then quarter L of x[i + c] holds column 4L + c of rows i .. i+3
      transpose4(x[i].a, x[i + 1].a, x[i + 2].a, x[i + 3].a);
      transpose4(x[i].b, x[i + 1].b, x[i + 2].b, x[i + 3].b);
      transpose4(x[i].c, x[i + 1].c, x[i + 2].c, x[i + 3].c);
      transpose4(x[i].d, x[i + 1].d, x[i + 2].d, x[i + 3].d);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      F32 q[4] = {as_f32(x[c]), as_f32(x[c + 4]), as_f32(x[c + 8]), as_f32(x[c + 12])};
      transpose_quarters(q);
#pragma GCC unroll 4
      for (int l = 0; l < 4; ++l) x[4 * l + c] = as_i32(q[l]);
    }
  }

  // ---- i16
  static I16 set_i16(int16_t x) { return {vdupq_n_s16(x), vdupq_n_s16(x), vdupq_n_s16(x), vdupq_n_s16(x)}; }
  static I16 add_i16(I16 x, I16 y) {
    return each<I16>([](auto a, auto b) { return vaddq_s16(a, b); }, x, y);
  }
  static I16 sub_i16(I16 x, I16 y) {
    return each<I16>([](auto a, auto b) { return vsubq_s16(a, b); }, x, y);
  }
  static I16 max_i16(I16 x, I16 y) {
    return each<I16>([](auto a, auto b) { return vmaxq_s16(a, b); }, x, y);
  }
  static int16_t reduce_max_i16(I16 x) { return vmaxvq_s16(vmaxq_s16(vmaxq_s16(x.a, x.b), vmaxq_s16(x.c, x.d))); }
  template <int kBits>
  static void store_u8_rounded(uint8_t* p, I16 x, I16 y) {
    auto pack = [p](int i, int16x8_t a, int16x8_t b) {
      vst1q_u8(p + i, vrshrn_high_n_u16(vrshrn_n_u16(words(a), kBits), words(b), kBits));
    };
    pack(0, x.a, x.b), pack(16, x.c, x.d), pack(32, y.a, y.b), pack(48, y.c, y.d);
  }
  template <int kBits>
  static void store_u8_rounded_apart(uint8_t* p, I16 x, I16 y) {
    auto pack = [p](int i, int16x8_t a) { vst1_u8(p + 16 * i, vrshrn_n_u16(words(a), kBits)); };
    pack(0, x.a), pack(1, x.b), pack(2, x.c), pack(3, x.d), pack(4, y.a), pack(5, y.b), pack(6, y.c), pack(7, y.d);
  }
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low half: one operation on any of four pipes, where
  // fcvtns takes two of two pipes twice, and sqxtn another.
  static void store_small_words(int16_t* p, F32 x) {
    const float32x4_t magic = vdupq_n_f32(kIntegers);
    auto round = [&](float32x4_t v) { return vreinterpretq_s16_f32(vaddq_f32(v, magic)); };
    vst1q_s16(p, vuzp1q_s16(round(x.a), round(x.b))), vst1q_s16(p + 8, vuzp1q_s16(round(x.c), round(x.d)));
  }
  // One rounding shift of a table entry. The entries are those of kExp2Table from the other end, so that the shift is
  // the exponent as it is: floored, not negated.
  [[gnu::always_inline]] static I16 exp2_eighths(I16 w) {
    const uint8x16x4_t low = vld1q_u8_x4(kExp2RisingBytes.v[0]), high = vld1q_u8_x4(kExp2RisingBytes.v[1]);
    auto look_up = [&](int16x8_t& x, int16x8_t& y) {  // two registers at once: an index fills a byte
      const uint8x16_t index = vandq_u8(vuzp1q_u8(vreinterpretq_u8_s16(x), vreinterpretq_u8_s16(y)), vdupq_n_u8(63));
      const uint8x16_t l = vqtbl4q_u8(low, index), h = vqtbl4q_u8(high, index);
      x = shift_each(vreinterpretq_u16_u8(vzip1q_u8(l, h)), vshrq_n_s16(x, 6));
      y = shift_each(vreinterpretq_u16_u8(vzip2q_u8(l, h)), vshrq_n_s16(y, 6));
    };
    look_up(w.a, w.b), look_up(w.c, w.d);
    return w;
  }
  static I32 sum_pairs_u16(I16 x) {
    return each<I32>([](auto a) { return vreinterpretq_s32_u32(vpaddlq_u16(vreinterpretq_u16_s16(a))); }, x);
  }

 protected:
  // Halves of the four sums of quarters side by side, then pairs of lanes.
  [[gnu::always_inline]] static float32x4_t add4(const F32* x) {
    auto quarters = [](const F32& v) { return vaddq_f32(vaddq_f32(v.a, v.c), vaddq_f32(v.b, v.d)); };
    auto halves = [](float32x4_t p, float32x4_t q) {
      const float64x2_t a = vreinterpretq_f64_f32(p), b = vreinterpretq_f64_f32(q);
      return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b)));
    };
    return vpaddq_f32(halves(quarters(x[0]), quarters(x[1])), halves(quarters(x[2]), quarters(x[3])));
  }
  static constexpr float kIntegers = 12582912.0f;  // 1.5 * 2^23: floats within 2^22 of it are the integers
  static uint16x8_t words(int16x8_t x) { return vreinterpretq_u16_s16(x); }
  static uint32x4_t as_unsigned(int32x4_t x) { return vreinterpretq_u32_s32(x); }
  static int64x2_t wide(int32x4_t x) { return vreinterpretq_s64_s32(x); }
  static int32x4_t narrow(int64x2_t x) { return vreinterpretq_s32_s64(x); }
  static int32x4_t as_signed(uint32x4_t x) { return vreinterpretq_s32_u32(x); }
  template <class R, class F, class... V>
  [[gnu::always_inline]] static R each(F f, V... v) {
    return {f(v.a...), f(v.b...), f(v.c...), f(v.d...)};
  }
  // The high 16 bits of each lane; kStep: words from one register's to the next.
  template <int kStep = 4>
  static void store_high_words(uint16_t* p, F32 x) {
    auto f = [p](int i, float32x4_t v) { vst1_u16(p + kStep * i, vshrn_n_u32(vreinterpretq_u32_f32(v), 16)); };
    f(0, x.a), f(1, x.b), f(2, x.c), f(3, x.d);
  }
  static uint32x4_t round_to_bf16(float32x4_t x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    return vbslq_u32(vceqq_f32(x, x), rounded, vorrq_u32(bits, vdupq_n_u32(0x400000)));
  }
  [[gnu::always_inline]] static float32x4_t exp2_128(float32x4_t x) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits: two additions on four pipes, where frintn
    // and fcvtzs have two pipes and take them twice.
    const float32x4_t magic = vdupq_n_f32(kIntegers), shifted = vaddq_f32(x, magic);
    const float32x4_t f = vsubq_f32(x, vsubq_f32(shifted, magic));
    float32x4_t p = vdupq_n_f32(kExp2Poly[4]);
    p = vfmaq_f32(vdupq_n_f32(kExp2Poly[3]), p, f);
    p = vfmaq_f32(vdupq_n_f32(kExp2Poly[2]), p, f);
    p = vfmaq_f32(vdupq_n_f32(kExp2Poly[1]), p, f);
    p = vfmaq_f32(vdupq_n_f32(kExp2Poly[0]), p, f);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, f);
    // Adding the integer to the exponent is exact: no result in -125..126 leaves the normal numbers.
    const int32x4_t scaled = vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_s32(scaled), vcgeq_f32(x, vdupq_n_f32(-125.0f))));
  }
  static void transpose4(int32x4_t& a, int32x4_t& b, int32x4_t& c, int32x4_t& d) {
    const int64x2_t ab0 = wide(vtrn1q_s32(a, b)), ab1 = wide(vtrn2q_s32(a, b));
    const int64x2_t cd0 = wide(vtrn1q_s32(c, d)), cd1 = wide(vtrn2q_s32(c, d));
    a = narrow(vtrn1q_s64(ab0, cd0)), c = narrow(vtrn2q_s64(ab0, cd0));
    b = narrow(vtrn1q_s64(ab1, cd1)), d = narrow(vtrn2q_s64(ab1, cd1));
  }
  static int16x8_t shift_each(uint16x8_t x, int16x8_t n) { return vreinterpretq_s16_u16(vrshlq_u16(x, n)); }
};

#if defined(__ARM_FEATURE_MATMUL_INT8) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
// The matrix instructions multiply 2 rows by 2 lanes, 8 bytes of each: twice the work of a dot product.
struct I8mm : Neon {
  static constexpr const char* kName = "i8mm";
  static constexpr bool kUnsignedValues = false, kPairs = true, kHasDot2 = true;

  static F32 dot2(F32 acc, I32 a, I32 b) {
    auto dot = [](float32x4_t sum, int32x4_t x, int32x4_t y) {
      return vbfdotq_f32(sum, vreinterpretq_bf16_s32(x), vreinterpretq_bf16_s32(y));
    };
    return {dot(acc.a, a.a, b.a), dot(acc.b, a.b, b.b), dot(acc.c, a.c, b.c), dot(acc.d, a.d, b.d)};
  }

  static void store_bf16_exact_apart(uint16_t* p, F32 a, F32 b) {
    store_high_words<8>(p, a), store_high_words<8>(p + 32, b);
  }

  // ---- pairs of rows
  static void interleave(I32& x, I32& y) {
    const I32 p = x, q = y;
    x = {vzip1q_s32(p.a, q.a), vzip2q_s32(p.a, q.a), vzip1q_s32(p.b, q.b), vzip2q_s32(p.b, q.b)};
    y = {vzip1q_s32(p.c, q.c), vzip2q_s32(p.c, q.c), vzip1q_s32(p.d, q.d), vzip2q_s32(p.d, q.d)};
  }
  static void split_rows(I32& x, I32& y) {
    const I32 p = x, q = y;
    auto low = [](int32x4_t a, int32x4_t b) { return narrow(vzip1q_s64(wide(a), wide(b))); };
    auto high = [](int32x4_t a, int32x4_t b) { return narrow(vzip2q_s64(wide(a), wide(b))); };
    x = {low(p.a, p.b), low(p.c, p.d), low(q.a, q.b), low(q.c, q.d)};
    y = {high(p.a, p.b), high(p.c, p.d), high(q.a, q.b), high(q.c, q.d)};
  }
  static void split_rows(F32& x, F32& y) {
    I32 p = as_i32(x), q = as_i32(y);
    split_rows(p, q);
    x = as_f32(p), y = as_f32(q);
  }
  static I32 dot8_ss(I32 acc, Quad rows, I32 packed) {
    auto dot = [&](auto sum, auto x) { return vmmlaq_s32(sum, vreinterpretq_s8_s32(rows), vreinterpretq_s8_s32(x)); };
    return each<I32>(dot, acc, packed);
  }
  static I32 dot8_us(I32 acc, Quad rows, I32 packed) {
    auto dot = [&](auto sum, auto x) { return vusmmlaq_s32(sum, vreinterpretq_u8_s32(rows), vreinterpretq_s8_s32(x)); };
    return each<I32>(dot, acc, packed);
  }
  static F32 dot4_bf16(F32 acc, Quad rows, I32 packed) {
    auto dot = [&](float32x4_t sum, int32x4_t x) {
      return vbfmmlaq_f32(sum, vreinterpretq_bf16_s32(rows), vreinterpretq_bf16_s32(x));
    };
    return {dot(acc.a, packed.a), dot(acc.b, packed.b), dot(acc.c, packed.c), dot(acc.d, packed.d)};
  }
};
#endif

}  // namespace clary
