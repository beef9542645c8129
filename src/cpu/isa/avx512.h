// AVX-512 (F, BW, DQ, VL, VNNI; BF16 in the derived set): a vector is one zmm register. Meanings: scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/isa/avx2.h"
#include "cpu/isa/exp2_table.h"

namespace clary {

struct Avx512Vnni {
  static constexpr const char* kName = "avx512vnni";
  // 16 accumulators, 4 vectors of the packed operand, 1 broadcast (a memory operand where the compiler can): 21 of 32
  // registers, which leaves room for the epilogue's constants.
  static constexpr int kTileRows = 4, kTileVectors = 4;
  static constexpr int kWideTileRows = kTileRows;
  static constexpr bool kHasTiles = false;
  static constexpr bool kHasDot2 = false;
  static constexpr bool kBytesAsWords = false;
  static constexpr bool kOverlaps = true;  // enough registers for products and softmax at once
  static constexpr bool kSignedKeys = false, kUnsignedValues = false, kLanes = false, kPairs = false;
  static constexpr bool kQuarters = false;

  using F32 = __m512;
  using I32 = __m512i;
  struct I16 {
    __m512i v;
  };

  static F32 load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F32 x) { _mm512_storeu_ps(p, x); }
  static I32 load_i32(const void* p) { return _mm512_loadu_si512(p); }
  static void store_i32(void* p, I32 x) { _mm512_storeu_si512(p, x); }
  static I16 load_i16(const int16_t* p) { return {_mm512_loadu_si512(p)}; }
  static void store_i16(int16_t* p, I16 x) { _mm512_storeu_si512(p, x.v); }
  static F32 load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F32 load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store_f16(uint16_t* p, F32 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_bf16(uint16_t* p, F32 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  static void store_i8(void* p, I32 x) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x)); }
  static void store_words(int16_t* p, I32 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(x));
  }
  static I32 load_u8(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }

  static void keep(F32& x) { asm volatile("" : "+v"(x)); }
  static void keep(I32& x) { asm volatile("" : "+v"(x)); }

  static F32 set(float x) { return _mm512_set1_ps(x); }
  static F32 zero() { return _mm512_setzero_ps(); }
  static F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  static F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
  static F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
  static F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
  static F32 mul_add(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  static F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
  static F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
  static F32 abs(F32 a) { return _mm512_abs_ps(a); }
  static F32 select_less(F32 a, F32 b, F32 x, F32 y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  static float reduce_add(F32 a) { return Avx2::reduce_add({_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)}); }
  [[gnu::always_inline]] static F32 reduce_add16(const F32 (&x)[16]) {
    return fold16(
        x, [](F32 a, F32 b) __attribute__((always_inline)) { return add(a, b); });
  }
  [[gnu::always_inline]] static F32 reduce_max16(const F32 (&x)[16]) {
    return fold16(
        x, [](F32 a, F32 b) __attribute__((always_inline)) { return max(a, b); });
  }
  static float reduce_max(F32 a) { return Avx2::reduce_max({_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)}); }
  [[gnu::always_inline]] static F32 exp2(F32 x) {
    const F32 r = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, r);
    F32 p = set(kExp2Poly[4]);
    p = mul_add(p, f, set(kExp2Poly[3]));
    p = mul_add(p, f, set(kExp2Poly[2]));
    p = mul_add(p, f, set(kExp2Poly[1]));
    p = mul_add(p, f, set(kExp2Poly[0]));
    p = mul_add(p, f, set(1.0f));
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, set(-125.0f), _CMP_GE_OQ), p, r);
  }

  static I32 to_i32(F32 a) { return _mm512_cvtps_epi32(a); }
  static F32 to_f32(I32 a) { return _mm512_cvtepi32_ps(a); }
  static F32 as_f32(I32 a) { return _mm512_castsi512_ps(a); }
  static I32 as_i32(F32 a) { return _mm512_castps_si512(a); }

  static I32 set_i32(int32_t x) { return _mm512_set1_epi32(x); }
  static I32 add_i32(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
  static I32 sub_i32(I32 a, I32 b) { return _mm512_sub_epi32(a, b); }
  static I32 max_i32(I32 a, I32 b) { return _mm512_max_epi32(a, b); }
  static I32 and_i32(I32 a, I32 b) { return _mm512_and_si512(a, b); }
  static I32 or_i32(I32 a, I32 b) { return _mm512_or_si512(a, b); }
  template <int n>
  static I32 shift_left(I32 a) {
    return _mm512_slli_epi32(a, n);
  }
  template <int n>
  static I32 shift_right(I32 a) {
    return _mm512_srli_epi32(a, n);
  }
  static int32_t reduce_add_i32(I32 a) { return _mm512_reduce_add_epi32(a); }
  static int32_t reduce_max_i32(I32 a) { return _mm512_reduce_max_epi32(a); }
  static I32 min_u8(I32 a, I32 b) { return _mm512_min_epu8(a, b); }

  static I32 dot4(I32 acc, I32 u, I32 s) { return _mm512_dpbusd_epi32(acc, u, s); }

  static void interleave_quarters(F32& x, F32& y) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const F32 a = x, b = y;
    x = _mm512_permutex2var_ps(a, first, b), y = _mm512_permutex2var_ps(a, second, b);
  }
  [[gnu::always_inline]] static void transpose_quarters(F32 (&x)[4]) {
    const F32 a = _mm512_shuffle_f32x4(x[0], x[1], 0x88), b = _mm512_shuffle_f32x4(x[0], x[1], 0xdd);
    const F32 c = _mm512_shuffle_f32x4(x[2], x[3], 0x88), d = _mm512_shuffle_f32x4(x[2], x[3], 0xdd);
    x[0] = _mm512_shuffle_f32x4(a, c, 0x88), x[2] = _mm512_shuffle_f32x4(a, c, 0xdd);
    x[1] = _mm512_shuffle_f32x4(b, d, 0x88), x[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
  [[gnu::always_inline]] static void transpose16(I32 (&x)[16]) {
    I32 t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {  // now quarter L of x[i + c] holds column 4L + c of rows i .. i+3
      x[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      x[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      x[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      x[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      F32 q[4] = {as_f32(x[c]), as_f32(x[c + 4]), as_f32(x[c + 8]), as_f32(x[c + 12])};
      transpose_quarters(q);
      for (int l = 0; l < 4; ++l) t[4 * l + c] = as_i32(q[l]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) x[i] = t[i];
  }

  static I16 set_i16(int16_t x) { return {_mm512_set1_epi16(x)}; }
  static I16 add_i16(I16 a, I16 b) { return {_mm512_add_epi16(a.v, b.v)}; }
  static I16 sub_i16(I16 a, I16 b) { return {_mm512_sub_epi16(a.v, b.v)}; }
  static I16 max_i16(I16 a, I16 b) { return {_mm512_max_epi16(a.v, b.v)}; }
  template <int n>
  static I16 shift_right_i16(I16 a) {
    return {_mm512_srli_epi16(a.v, n)};
  }
  template <int n>
  static I16 round_shift_i16(I16 a) {
    return shift_right_i16<n>(add_i16(a, set_i16(1 << (n - 1))));
  }
  static int16_t reduce_max_i16(I16 a) {
    return Avx2::reduce_max_i16({_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1)});
  }
  static I16 pack_i16(I32 a, I32 b) { return {_mm512_packs_epi32(a, b)}; }
  static void store_u8(uint8_t* p, I16 a, I16 b) {
    // Packing acts inside quarters: 8 bytes of a and 8 of b in each.
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi64(order, _mm512_packus_epi16(a.v, b.v)));
  }
  static I16 exp2_i16(I16 d) {
    const __m512i low = _mm512_load_si512(kExp2Table.v.data()), high = _mm512_load_si512(kExp2Table.v.data() + 32);
    const __m512i x = _mm512_srlv_epi16(_mm512_permutex2var_epi16(low, d.v, high), _mm512_srli_epi16(d.v, 6));
    return round_shift_i16<3>({x});
  }
  static I32 sum_pairs_u16(I16 a) {
    return _mm512_add_epi32(_mm512_and_si512(a.v, _mm512_set1_epi32(0xffff)), _mm512_srli_epi32(a.v, 16));
  }

 private:
  // Folds pairs of vectors side by side: 16 lanes to 8, 4, 2, 1, in the order of reduce_add: 46 instructions in all.
  template <class Op>
  [[gnu::always_inline]] static F32 fold16(const F32 (&x)[16], Op&& op) {
    F32 a[8], b[4], c[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)  // halves of x[i] and x[i + 8]
      a[i] = op(_mm512_shuffle_f32x4(x[i], x[i + 8], 0x44), _mm512_shuffle_f32x4(x[i], x[i + 8], 0xee));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)  // quarters of x[i], x[i + 8], x[i + 4], x[i + 12]
      b[i] = op(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)  // pairs of lanes: of b[i], then of b[i + 2], in every quarter
      c[i] = op(_mm512_shuffle_ps(b[i], b[i + 2], 0x44), _mm512_shuffle_ps(b[i], b[i + 2], 0xee));
    const F32 folded = op(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd));
    // Lane 4 q + (0, 1, 2, 3) is vector (0, 2, 1, 3) + (0, 8, 4, 12)[q].
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15), folded);
  }
};

#if defined(__AVX512BF16__)
struct Avx512Bf16 : Avx512Vnni {
  static constexpr const char* kName = "avx512bf16";
  static constexpr bool kHasDot2 = true;
  static void store_bf16_exact(uint16_t* p, F32 a, F32 b) {
    const __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(as_i32(a), 16));
    const __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(as_i32(b), 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16), high);
  }
  static F32 dot2(F32 acc, I32 a, I32 b) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

}  // namespace clary
