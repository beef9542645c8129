// wgmma: products of a warp group, 64 x N results, A in shared memory (SS) or registers (RS), B in shared memory.
//
// Asynchronous: between issue and wait_products the registers belong to the tensor core. What the compiler must not do
// in between is read or move them: `pin` after a wait makes it take their values from there.
//
// The accumulator tile n (8 columns) of a thread is d[n], as of an m16n8 product of its warp (layout/fragments.h). A
// step is 32 bytes of k. Descriptors: layout/image.h; the high word is a constant.
#pragma once

#include "cuda/layout/image.h"

namespace clary::cuda {

// Lists of registers for the assembler: numbers in the text, and elements of d[n][4] as its operands.
#define CLARY_REGISTERS_32                                                                      \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31}"
#define CLARY_REGISTERS_64                                                                       \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"  \
  "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
#define CLARY_REGISTERS_36                                                                      \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35}"
#define CLARY_REGISTERS_68                                                                       \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"  \
  "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67}"
#define CLARY_REGISTERS_48                                                                      \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47}"
#define CLARY_REGISTERS_52                                                                       \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"  \
  "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51}"
#define CLARY_TILE(c, n) c(d[n][0]), c(d[n][1]), c(d[n][2]), c(d[n][3])
#define CLARY_TILES_4(c, n) CLARY_TILE(c, n), CLARY_TILE(c, n + 1), CLARY_TILE(c, n + 2), CLARY_TILE(c, n + 3)
#define CLARY_OPERANDS_32(c) CLARY_TILES_4(c, 0), CLARY_TILES_4(c, 4)
#define CLARY_OPERANDS_64(c) CLARY_OPERANDS_32(c), CLARY_TILES_4(c, 8), CLARY_TILES_4(c, 12)
#define CLARY_OPERANDS_36(c) CLARY_OPERANDS_32(c), CLARY_TILE(c, 8)
#define CLARY_OPERANDS_48(c) CLARY_OPERANDS_32(c), CLARY_TILES_4(c, 8)
#define CLARY_OPERANDS_52(c) CLARY_OPERANDS_48(c), CLARY_TILE(c, 12)
#define CLARY_OPERANDS_68(c) CLARY_OPERANDS_64(c), CLARY_TILE(c, 16)
// One instruction. first, second: numbers of the operands after the accumulators.
#define CLARY_WGMMA_SS(count, constraint, shape, a, b, high_a, high_b, go, tail)                           \
  asm volatile("{\n.reg .pred p;\n.reg .b64 x, y;\nsetp.ne.b32 p, %" go                                    \
               ", 0;\n"                                                                                    \
               "mov.b64 x, {%" a ", %" high_a "};\nmov.b64 y, {%" b ", %" high_b                           \
               "};\n"                                                                                      \
               "wgmma.mma_async.sync.aligned." shape " " CLARY_REGISTERS_##count ", x, y, p" tail ";\n}\n" \
               : CLARY_OPERANDS_##count(constraint)                                                        \
               : "r"(a_low), "r"(b_low), "n"(kHighA), "n"(kHighB), "r"(accumulate))
#define CLARY_WGMMA_RS(count, shape, a0, a1, a2, a3, b, high_b, go, tail)                                             \
  asm volatile("{\n.reg .pred p;\n.reg .b64 y;\nsetp.ne.b32 p, %" go ", 0;\nmov.b64 y, {%" b ", %" high_b             \
               "};\n"                                                                                                 \
               "wgmma.mma_async.sync.aligned." shape " " CLARY_REGISTERS_##count ", {%" a0 ", %" a1 ", %" a2 ", %" a3 \
                                                                                 "}, y, p" tail ";\n}\n"              \
               : CLARY_OPERANDS_##count("+f")                                                                         \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "n"(kHighB), "r"(accumulate))

struct WgmmaOps {
  // d = A B (+ d): scores of 64 queries.
  template <Element E, int kColumns, uint32_t kHighA, uint32_t kHighB>
  static __device__ __forceinline__ void product_ss(int (*d)[4], uint32_t a_low, uint32_t b_low, int accumulate) {
    static_assert(E == Element::s8 && kColumns == 128);
    CLARY_WGMMA_SS(64, "+r", "m64n128k32.s32.s8.s8", "64", "65", "66", "67", "68", "");
  }
  template <Element E, int kColumns, uint32_t kHighA, uint32_t kHighB>
  static __device__ __forceinline__ void product_ss(float (*d)[4], uint32_t a_low, uint32_t b_low, int accumulate) {
    constexpr bool kF16 = E == Element::f16;
    static_assert(bits_of(E) == 16 && (kColumns == 64 || kColumns == 128));
    if constexpr (kColumns == 128 && kF16)
      CLARY_WGMMA_SS(64, "+f", "m64n128k16.f32.f16.f16", "64", "65", "66", "67", "68", ", 1, 1, 0, 0");
    else if constexpr (kColumns == 128)
      CLARY_WGMMA_SS(64, "+f", "m64n128k16.f32.bf16.bf16", "64", "65", "66", "67", "68", ", 1, 1, 0, 0");
    else if constexpr (kF16)
      CLARY_WGMMA_SS(32, "+f", "m64n64k16.f32.f16.f16", "32", "33", "34", "35", "36", ", 1, 1, 0, 0");
    else
      CLARY_WGMMA_SS(32, "+f", "m64n64k16.f32.bf16.bf16", "32", "33", "34", "35", "36", ", 1, 1, 0, 0");
  }

  // d = P B (+ d). 72, 104 and 136 columns: a block of ones beside V.
  template <Element E, int kColumns, uint32_t kHighB>
  static __device__ __forceinline__ void product_rs(float (*d)[4], const uint32_t (&a)[4], uint32_t b_low,
                                                    int accumulate) {
    static_assert(!is_integer(E));
    if constexpr (kColumns == 136)
      CLARY_WGMMA_RS(68, "m64n136k32.f32.e4m3.e4m3", "68", "69", "70", "71", "72", "73", "74", ", 1, 1");
    else if constexpr (kColumns == 104)
      CLARY_WGMMA_RS(52, "m64n104k32.f32.e4m3.e4m3", "52", "53", "54", "55", "56", "57", "58", ", 1, 1");
    else if constexpr (kColumns == 72)
      CLARY_WGMMA_RS(36, "m64n72k32.f32.e4m3.e4m3", "36", "37", "38", "39", "40", "41", "42", ", 1, 1");
    else if constexpr (kColumns == 128 && E == Element::e4m3)
      CLARY_WGMMA_RS(64, "m64n128k32.f32.e4m3.e4m3", "64", "65", "66", "67", "68", "69", "70", ", 1, 1");
    else if constexpr (kColumns == 128 && E == Element::f16)
      CLARY_WGMMA_RS(64, "m64n128k16.f32.f16.f16", "64", "65", "66", "67", "68", "69", "70", ", 1, 1, 0");
    else if constexpr (kColumns == 128)
      CLARY_WGMMA_RS(64, "m64n128k16.f32.bf16.bf16", "64", "65", "66", "67", "68", "69", "70", ", 1, 1, 0");
    else if constexpr (kColumns == 96 && E == Element::e4m3)
      CLARY_WGMMA_RS(48, "m64n96k32.f32.e4m3.e4m3", "48", "49", "50", "51", "52", "53", "54", ", 1, 1");
    else if constexpr (kColumns == 96 && E == Element::f16)
      CLARY_WGMMA_RS(48, "m64n96k16.f32.f16.f16", "48", "49", "50", "51", "52", "53", "54", ", 1, 1, 0");
    else if constexpr (kColumns == 96)
      CLARY_WGMMA_RS(48, "m64n96k16.f32.bf16.bf16", "48", "49", "50", "51", "52", "53", "54", ", 1, 1, 0");
    else if constexpr (E == Element::e4m3)
      CLARY_WGMMA_RS(32, "m64n64k32.f32.e4m3.e4m3", "32", "33", "34", "35", "36", "37", "38", ", 1, 1");
    else if constexpr (E == Element::f16)
      CLARY_WGMMA_RS(32, "m64n64k16.f32.f16.f16", "32", "33", "34", "35", "36", "37", "38", ", 1, 1, 0");
    else
      CLARY_WGMMA_RS(32, "m64n64k16.f32.bf16.bf16", "32", "33", "34", "35", "36", "37", "38", ", 1, 1, 0");
  }

  // Orders what was done with the registers before the products that follow.
  static __device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
  static __device__ __forceinline__ void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }
  template <int kPending>
  static __device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  }

  template <int kTiles>
  static __device__ __forceinline__ void pin(int (&d)[kTiles][4]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(d[n][i])::"memory");
  }
  template <int kTiles>
  static __device__ __forceinline__ void pin(uint32_t (&d)[kTiles][4]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(d[n][i])::"memory");
  }
  template <int kTiles>
  static __device__ __forceinline__ void pin(float (&d)[kTiles][4]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
  }
};

#undef CLARY_WGMMA_RS
#undef CLARY_WGMMA_SS
#undef CLARY_OPERANDS_68
#undef CLARY_OPERANDS_52
#undef CLARY_OPERANDS_48
#undef CLARY_OPERANDS_36
#undef CLARY_OPERANDS_64
#undef CLARY_OPERANDS_32
#undef CLARY_TILES_4
#undef CLARY_TILE
#undef CLARY_REGISTERS_68
#undef CLARY_REGISTERS_52
#undef CLARY_REGISTERS_48
#undef CLARY_REGISTERS_36
#undef CLARY_REGISTERS_64
#undef CLARY_REGISTERS_32

}  // namespace clary::cuda
