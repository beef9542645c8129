// AVX2 with FMA and F16C, and AVX-VNNI over it: a vector is two ymm registers, `lo` with quarters 0 and 1, `hi` with 2
// and 3. Meanings: scalar.h. Functions that AvxVnni shares and that are too large to be inlined by themselves are
// always_inline: a copy of them would be a symbol common to translation units with different flags.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/isa/exp2_table.h"

namespace clary {

// Bytes for vpshufb, [low or high byte][part][16]: half of kExp2Table in four parts, and 2^(13 - n) for n < 16.
struct Exp2ByteTable {
  alignas(64) uint8_t v[2][5][16];
};

constexpr Exp2ByteTable make_exp2_byte_table() {
  Exp2ByteTable table{};
  for (int byte = 0; byte < 2; ++byte) {
    for (int i = 0; i < 64; ++i) table.v[byte][i / 16][i % 16] = static_cast<uint8_t>(kExp2Table.v[i] / 2 >> 8 * byte);
    for (int n = 0; n < 16; ++n) table.v[byte][4][n] = static_cast<uint8_t>((1 << 13 >> n) >> 8 * byte);
  }
  return table;
}

inline constexpr Exp2ByteTable kExp2ByteTable = make_exp2_byte_table();

struct Avx2 {
  static constexpr const char* kName = "avx2";
  // 8 accumulators, and beside them one vector and one broadcast, both split for dot4 (4 + 2), which leaves 2 of 16
  // registers for products.
  static constexpr int kTileRows = 4, kTileVectors = 1;
  // 12 accumulators where a step is a multiply-add, or two operations on words: 8 chains of 4 cycles would just fill
  // two ports, with no room for a load that comes late.
  static constexpr int kWideTileRows = 6;
  static constexpr bool kHasTiles = false;
  static constexpr bool kHasDot2 = false;
  static constexpr bool kBytesAsWords = true;
  static constexpr bool kOverlaps = false;  // enough registers for products and softmax at once
  static constexpr bool kSignedKeys = false, kUnsignedValues = false, kLanes = false, kPairs = false;
  static constexpr bool kQuarters = false;

  struct F32 {
    __m256 lo, hi;
  };
  struct I32 {
    __m256i lo, hi;
  };
  struct I16 {
    __m256i lo, hi;
  };

  // ---- memory
  static F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F32 x) { _mm256_storeu_ps(p, x.lo), _mm256_storeu_ps(p + 8, x.hi); }
  static I32 load_i32(const void* p) { return {load_256(p), load_256(static_cast<const char*>(p) + 32)}; }
  static void store_i32(void* p, I32 x) { store_256(p, x.lo), store_256(static_cast<char*>(p) + 32, x.hi); }
  static I16 load_i16(const int16_t* p) { return {load_256(p), load_256(p + 16)}; }
  static void store_i16(int16_t* p, I16 x) { store_256(p, x.lo), store_256(p + 16, x.hi); }
  static F32 load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))}; }
  static F32 load_bf16(const uint16_t* p) {
    return as_f32(shift_left<16>({_mm256_cvtepu16_epi32(load_128(p)), _mm256_cvtepu16_epi32(load_128(p + 8))}));
  }
  static void store_f16(uint16_t* p, F32 x) {
    store_128(p, _mm256_cvtps_ph(x.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    store_128(p + 8, _mm256_cvtps_ph(x.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_bf16(uint16_t* p, F32 x) { store_low_words(p, {round_to_bf16(x.lo), round_to_bf16(x.hi)}); }
  static void store_i8(void* p, I32 x) {
    const __m256i byte = _mm256_set1_epi32(0xff);
    const __m256i words = _mm256_packus_epi32(_mm256_and_si256(x.lo, byte), _mm256_and_si256(x.hi, byte));
    const __m256i bytes = _mm256_packus_epi16(words, words);  // dwords of quarters 0 2 0 2, 1 3 1 3
    store_128(p, _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
  }
  static void store_words(int16_t* p, I32 x) {
    // Packing acts inside quarters: words of quarters 0 2 1 3.
    store_256(p, _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xd8));
  }
  static I32 load_u8(const uint8_t* p) {
    const __m128i bytes = load_128(p);
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes))};
  }

  // ---- f32
  static void keep(F32& x) { asm volatile("" : "+x"(x.lo), "+x"(x.hi)); }
  static void keep(I32& x) { asm volatile("" : "+x"(x.lo), "+x"(x.hi)); }

  static F32 set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F32 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  static F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  static F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  static F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
  static F32 mul_add(F32 a, F32 b, F32 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  static F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
  static F32 abs(F32 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
  }
  static F32 select_less(F32 a, F32 b, F32 x, F32 y) {
    return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
  }
  [[gnu::always_inline]] static float reduce_add(F32 a) {
    const __m256 half = _mm256_add_ps(a.lo, a.hi);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
  }
  // In the order of reduce_add, two vectors side by side: 16 operations instead of 32.
  [[gnu::always_inline]] static void reduce_add4(const F32 (&x)[4], float* to) {
    __m256 half[4], both[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) half[i] = _mm256_add_ps(x[i].lo, x[i].hi);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)  // quarters of x[i] and x[i + 2]
      both[i] = _mm256_add_ps(_mm256_permute2f128_ps(half[i], half[i + 2], 0x20),
                              _mm256_permute2f128_ps(half[i], half[i + 2], 0x31));
    // In each half, pairs of both[0] and of both[1].
    const __m256 pairs =
        _mm256_add_ps(_mm256_shuffle_ps(both[0], both[1], 0x44), _mm256_shuffle_ps(both[0], both[1], 0xee));
    const __m256 sums = _mm256_add_ps(pairs, _mm256_movehdup_ps(pairs));  // lanes 0, 2, 4, 6
    _mm_storeu_ps(to, _mm_shuffle_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1), 0x88));
  }
  [[gnu::always_inline]] static F32 reduce_add16(const F32 (&x)[16]) {
    return fold16(
        x, [](__m256 a, __m256 b) __attribute__((always_inline)) { return _mm256_add_ps(a, b); });
  }
  [[gnu::always_inline]] static F32 reduce_max16(const F32 (&x)[16]) {
    return fold16(
        x, [](__m256 a, __m256 b) __attribute__((always_inline)) { return _mm256_max_ps(a, b); });
  }
  [[gnu::always_inline]] static float reduce_max(F32 a) {
    const __m256 half = _mm256_max_ps(a.lo, a.hi);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
  }
  [[gnu::always_inline]] static F32 exp2(F32 x) { return {exp2_256(x.lo), exp2_256(x.hi)}; }

  // ---- conversions
  static I32 to_i32(F32 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
  static F32 to_f32(I32 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
  static F32 as_f32(I32 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
  static I32 as_i32(F32 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }

  // ---- i32
  static I32 set_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static I32 add_i32(I32 a, I32 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
  static I32 sub_i32(I32 a, I32 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
  static I32 max_i32(I32 a, I32 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
  static I32 and_i32(I32 a, I32 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
  static I32 or_i32(I32 a, I32 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
  template <int n>
  static I32 shift_left(I32 a) {
    return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
  }
  template <int n>
  static I32 shift_right(I32 a) {
    return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)};
  }
  static int32_t reduce_add_i32(I32 a) {
    const __m256i half = _mm256_add_epi32(a.lo, a.hi);
    __m128i q = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
  }
  static int32_t reduce_max_i32(I32 a) {
    const __m256i half = _mm256_max_epi32(a.lo, a.hi);
    __m128i q = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    q = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
  }
  static I32 min_u8(I32 a, I32 b) { return {_mm256_min_epu8(a.lo, b.lo), _mm256_min_epu8(a.hi, b.hi)}; }

  // ---- dot products
  // vpmaddubsw would saturate (2 * 255 * 128 > 32767), so bytes are widened to words: even and odd ones apart. Widening
  // depends on one operand only: a product loop does it once per vector, not once per row. Beside that, 2 multiplies
  // and 2 additions per register.
  static I32 dot4(I32 acc, I32 u, I32 s) {
    // Odd bytes of both registers first: of a broadcast operand's two halves, only one is alive at a time.
    const __m256i even = _mm256_set1_epi16(0xff);
    acc = dot_words(acc, shift_right_i16<8>({u.lo, u.hi}), {_mm256_srai_epi16(s.lo, 8), _mm256_srai_epi16(s.hi, 8)});
    const I16 s_even = {_mm256_srai_epi16(_mm256_slli_epi16(s.lo, 8), 8),
                        _mm256_srai_epi16(_mm256_slli_epi16(s.hi, 8), 8)};
    return dot_words(acc, {_mm256_and_si256(u.lo, even), _mm256_and_si256(u.hi, even)}, s_even);
  }
  static I32 dot2_i16(I32 acc, I32 a, I32 b) { return dot_words(acc, {a.lo, a.hi}, {b.lo, b.hi}); }

  // ---- transposes
  static void interleave_quarters(F32& x, F32& y) {
    const F32 a = x, b = y;
    x = {_mm256_permute2f128_ps(a.lo, b.lo, 0x20), _mm256_permute2f128_ps(a.lo, b.lo, 0x31)};
    y = {_mm256_permute2f128_ps(a.hi, b.hi, 0x20), _mm256_permute2f128_ps(a.hi, b.hi, 0x31)};
  }
  // Four 8 x 8 blocks, each of which fits the registers.
  [[gnu::always_inline]] static void transpose16(I32 (&x)[16]) {
    __m256i upper[8], lower[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) upper[i] = x[i].lo;
    transpose8(upper);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) x[i].lo = upper[i], upper[i] = x[i].hi;
    transpose8(upper);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) lower[i] = x[8 + i].lo, x[8 + i].lo = upper[i];
    transpose8(lower);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) x[i].hi = lower[i], lower[i] = x[8 + i].hi;
    transpose8(lower);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) x[8 + i].hi = lower[i];
  }

  // ---- i16
  static I16 set_i16(int16_t x) { return {_mm256_set1_epi16(x), _mm256_set1_epi16(x)}; }
  static I16 add_i16(I16 a, I16 b) { return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)}; }
  static I16 sub_i16(I16 a, I16 b) { return {_mm256_sub_epi16(a.lo, b.lo), _mm256_sub_epi16(a.hi, b.hi)}; }
  static I16 max_i16(I16 a, I16 b) { return {_mm256_max_epi16(a.lo, b.lo), _mm256_max_epi16(a.hi, b.hi)}; }
  template <int n>
  static I16 shift_right_i16(I16 a) {
    return {_mm256_srli_epi16(a.lo, n), _mm256_srli_epi16(a.hi, n)};
  }
  template <int n>
  static I16 round_shift_i16(I16 a) {
    const __m256i factor = _mm256_set1_epi16(1 << (15 - n));
    return {_mm256_mulhrs_epi16(a.lo, factor), _mm256_mulhrs_epi16(a.hi, factor)};
  }
  // vphminposuw finds the smallest unsigned word: x ^ 0x7fff turns the largest signed word into it.
  [[gnu::always_inline]] static int16_t reduce_max_i16(I16 a) {
    const __m256i half = _mm256_max_epi16(a.lo, a.hi);
    const __m128i q = _mm_max_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m128i smallest = _mm_minpos_epu16(_mm_xor_si128(q, _mm_set1_epi16(0x7fff)));
    return static_cast<int16_t>(_mm_extract_epi16(smallest, 0) ^ 0x7fff);
  }
  static I16 pack_i16(I32 a, I32 b) { return {_mm256_packs_epi32(a.lo, b.lo), _mm256_packs_epi32(a.hi, b.hi)}; }
  static void store_u8(uint8_t* p, I16 a, I16 b) {
    store_256(p, _mm256_permute4x64_epi64(_mm256_packus_epi16(a.lo, a.hi), 0xd8));
    store_256(p + 32, _mm256_permute4x64_epi64(_mm256_packus_epi16(b.lo, b.hi), 0xd8));
  }
  // An index fills a byte, so both registers are looked up at once. floor(floor(t / 2^n) / 8 + 1/2) is the rounded high
  // half of t / 2 times 2^(13 - n): t / 2 fits 15 bits, and its lost bit cannot carry across an even bound.
  [[gnu::always_inline]] static I16 exp2_i16(I16 d) {
    const __m256i fraction = _mm256_set1_epi16(63);
    const __m256i index = _mm256_packus_epi16(_mm256_and_si256(d.lo, fraction), _mm256_and_si256(d.hi, fraction));
    const __m256i octave = _mm256_packus_epi16(_mm256_srli_epi16(d.lo, 6), _mm256_srli_epi16(d.hi, 6));
    // Four sixteenths of the table by vpshufb; bits 4 and 5 of the index, moved to bit 7, choose among them.
    const __m256i bit4 = _mm256_slli_epi16(index, 3), bit5 = _mm256_slli_epi16(index, 2);
    const __m256i low = exp2_byte(0, index, bit4, bit5), high = exp2_byte(1, index, bit4, bit5);
    const __m256i power_low = _mm256_shuffle_epi8(exp2_bytes(0, 4), octave);
    const __m256i power_high = _mm256_shuffle_epi8(exp2_bytes(1, 4), octave);
    return {_mm256_mulhrs_epi16(_mm256_unpacklo_epi8(low, high), _mm256_unpacklo_epi8(power_low, power_high)),
            _mm256_mulhrs_epi16(_mm256_unpackhi_epi8(low, high), _mm256_unpackhi_epi8(power_low, power_high))};
  }
  static I32 sum_pairs_u16(I16 a) {
    const I32 x = {a.lo, a.hi};
    return add_i32(and_i32(x, set_i32(0xffff)), shift_right<16>(x));
  }

 protected:
  static __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store_128(void* p, __m128i x) { _mm_storeu_si128(static_cast<__m128i*>(p), x); }
  static void store_256(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  // Folds vectors side by side, 16 lanes to 8, 4, 2, 1, in the order of reduce_add: 58 instructions in all.
  template <class Op>
  [[gnu::always_inline]] static F32 fold16(const F32 (&x)[16], Op&& op) {
    __m256 folded[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256 a[4], b[2];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {  // quarters of vectors i and i + 4
        const F32 &u = x[8 * half + i], &v = x[8 * half + i + 4];
        const __m256 s = op(u.lo, u.hi), t = op(v.lo, v.hi);
        a[i] = op(_mm256_permute2f128_ps(s, t, 0x20), _mm256_permute2f128_ps(s, t, 0x31));
      }
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i)  // pairs of lanes
        b[i] = op(_mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44), _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
      folded[half] = op(_mm256_shuffle_ps(b[0], b[1], 0x88), _mm256_shuffle_ps(b[0], b[1], 0xdd));
    }
    return {folded[0], folded[1]};
  }
  // The low 16 bits of each lane; the high ones must be zero.
  static void store_low_words(uint16_t* p, I32 x) {
    store_256(p, _mm256_permute4x64_epi64(_mm256_packus_epi32(x.lo, x.hi), 0xd8));
  }
  [[gnu::always_inline]] static __m256i round_to_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  }
  [[gnu::always_inline]] static __m256 exp2_256(__m256 x) {
    const __m256 r = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm256_sub_ps(x, r);
    __m256 p = _mm256_set1_ps(kExp2Poly[4]);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2Poly[3]));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2Poly[2]));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2Poly[1]));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2Poly[0]));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    // Adding r to the exponent is exact: no result in -125..126 leaves the normal numbers.
    const __m256i scaled = _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(r), 23));
    return _mm256_and_ps(_mm256_castsi256_ps(scaled), _mm256_cmp_ps(x, _mm256_set1_ps(-125.0f), _CMP_GE_OQ));
  }
  // In place and in this order: compilers reassociate sums over several steps, which takes more registers than there
  // are, and a barrier alone costs a copy per sum, which the front end has no room for.
  static I32 dot_words(I32 acc, I16 a, I16 b) {
    asm("vpaddd %1, %0, %0" : "+x"(acc.lo) : "x"(_mm256_madd_epi16(a.lo, b.lo)));
    asm("vpaddd %1, %0, %0" : "+x"(acc.hi) : "x"(_mm256_madd_epi16(a.hi, b.hi)));
    return acc;
  }
  [[gnu::always_inline]] static void transpose8(__m256i (&x)[8]) {
    __m256i t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
      t[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {  // now quarter L of x[i + c] holds column 4L + c of rows i .. i+3
      x[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
      x[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
      x[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
      x[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m256i a = x[c], b = x[c + 4];
      x[c] = _mm256_permute2x128_si256(a, b, 0x20), x[c + 4] = _mm256_permute2x128_si256(a, b, 0x31);
    }
  }
  [[gnu::always_inline]] static __m256i exp2_byte(int byte, __m256i index, __m256i bit4, __m256i bit5) {
    __m256i x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = _mm256_shuffle_epi8(exp2_bytes(byte, i), index);
    return _mm256_blendv_epi8(_mm256_blendv_epi8(x[0], x[1], bit4), _mm256_blendv_epi8(x[2], x[3], bit4), bit5);
  }
  static __m256i exp2_bytes(int byte, int part) {
    return _mm256_broadcastsi128_si256(load_128(kExp2ByteTable.v[byte][part]));
  }
};

#if defined(__AVXVNNI__)
struct AvxVnni : Avx2 {
  static constexpr const char* kName = "avxvnni";
  static constexpr bool kBytesAsWords = false;
  static I32 dot4(I32 acc, I32 u, I32 s) {
    return {_mm256_dpbusd_avx_epi32(acc.lo, u.lo, s.lo), _mm256_dpbusd_avx_epi32(acc.hi, u.hi, s.hi)};
  }
};
#endif

}  // namespace clary
