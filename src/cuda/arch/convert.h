// Arithmetic of single elements: special functions and conversions.
#pragma once

#include "cuda/layout/target.h"

namespace clary::cuda {

struct ConvertOps {
  // MUFU.EX2: 2 ulp; subnormal results are 0, exp2(-inf) = 0.
  static __device__ __forceinline__ float exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  static __device__ __forceinline__ float log2(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  static __device__ __forceinline__ float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
  static __device__ __forceinline__ float maximum(float a, float b) { return fmaxf(a, b); }
  static __device__ __forceinline__ int maximum(int a, int b, int c) { return __vimax3_s32(a, b, c); }
  // 2 ulp, by the reciprocal.
  static __device__ __forceinline__ float divide(float a, float b) { return __fdividef(a, b); }
  static __device__ __forceinline__ float to_float(int x) { return __int2float_rn(x); }
  static __device__ __forceinline__ float to_float(float x) { return x; }
  static __device__ __forceinline__ int to_int(float x) { return __float2int_rn(x); }  // nearest even; NaN gives 0
  static __device__ __forceinline__ uint32_t bits(float x) { return __float_as_uint(x); }
  static __device__ __forceinline__ float from_bits(uint32_t x) { return __uint_as_float(x); }

  // The lower half holds `a`. Nearest even; f16 overflows to infinity.
  static __device__ __forceinline__ uint32_t f16x2(float a, float b) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(r) : "f"(a), "f"(b));
    return r;
  }
  static __device__ __forceinline__ uint32_t bf16x2(float a, float b) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(r) : "f"(a), "f"(b));
    return r;
  }
  static __device__ __forceinline__ float from_f16(uint16_t x) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
    return r;
  }
  static __device__ __forceinline__ float from_bf16(uint16_t x) {
    return __uint_as_float(static_cast<uint32_t>(x) << 16);
  }
  // Bytes a, b, c, d from the lowest up; saturates at +-448, NaN stays NaN. sm_89 and later.
  static __device__ __forceinline__ uint32_t e4m3x4(float a, float b, float c, float d) {
    uint32_t r;
    asm("{\n.reg .b16 l, h;\ncvt.rn.satfinite.e4m3x2.f32 l, %2, %1;\ncvt.rn.satfinite.e4m3x2.f32 h, %4, %3;\n"
        "mov.b32 %0, {l, h};\n}\n"
        : "=r"(r)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return r;
  }
  // The same of two pairs of f16.
  static __device__ __forceinline__ uint32_t e4m3x4_of_f16(uint32_t ab, uint32_t cd) {
    uint32_t r;
    asm("{\n.reg .b16 l, h;\ncvt.rn.satfinite.e4m3x2.f16x2 l, %1;\ncvt.rn.satfinite.e4m3x2.f16x2 h, %2;\n"
        "mov.b32 %0, {l, h};\n}\n"
        : "=r"(r)
        : "r"(ab), "r"(cd));
    return r;
  }

  // The high word of a b + c.
  static __device__ __forceinline__ int multiply_high(int a, int b, int64_t c) {
    return static_cast<int>((static_cast<int64_t>(a) * b + c) >> 32);
  }
  // Saturated to 0 .. 65535; the lower half holds `a`.
  static __device__ __forceinline__ uint32_t pack_u16(int a, int b) {
    uint32_t r;
    asm("cvt.pack.sat.u16.s32 %0, %2, %1;" : "=r"(r) : "r"(a), "r"(b));
    return r;
  }
  // a b + c of pairs of f16.
  static __device__ __forceinline__ uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
  }
};

}  // namespace clary::cuda
