// AMX (tiles, 8-bit integers, bf16) over AVX-512 with VBMI: eight tile registers of 16 rows x 64 bytes. Meanings of the
// tile operations: amx_emulated.h.
//
// Inline assembly, because g++ 12's intrinsics tell the compiler too little: _tile_loadconfig declares 8 of the 64
// bytes that it reads, and _tile_loadd does not say that it reads memory.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "cpu/isa/avx512.h"

namespace clary {

struct Amx : Avx512Bf16 {
  static constexpr const char* kName = "amx";
  static constexpr bool kHasTiles = true;
  static constexpr bool kVectorsAreLoops = false;
  static constexpr bool kOverlaps = false;  // products do not run on the vector ports

  // Asks the kernel for the tile registers, once per process; threads started later inherit the answer.
  static bool request_permission() {
    constexpr long kRequestPermission = 0x1023 /* ARCH_REQ_XCOMP_PERM */, kTileData = 18 /* XFEATURE_XTILEDATA */;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }

  static void tile_config() { asm volatile("ldtilecfg %0" ::"m"(kConfig) : "memory"); }
  static void tile_release() { asm volatile("tilerelease" ::: "memory"); }
  template <int T>
  static void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  static void tile_load(const void* p, int64_t stride_bytes) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(p), "r"(stride_bytes) : "memory");
  }
  template <int T>
  static void tile_store(void* p, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(p), "r"(stride_bytes) : "memory");
  }
  template <int T>
  static void tile_load_once(const void* p, int64_t stride_bytes) {
    asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(p), "r"(stride_bytes) : "memory");
  }
  template <int C, int A, int B>
  static void tile_dot4_ss() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B>
  static void tile_dot4_su() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B>
  static void tile_dot2() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

  static I16 as_i16(I32 a) { return {a}; }
  static I32 as_words(I16 a) { return a.v; }
  // One byte shuffle that keeps the lower half of the first operand: port 5, which FMAs beside tiles leave free.
  [[gnu::always_inline]] static I16 join_words(I32 a, I32 b) {
    const __m512i halves = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13));
    return {_mm512_mask_shuffle_epi8(a, 0xccccccccccccccccu, b, halves)};
  }
  // The same of the upper halves.
  [[gnu::always_inline]] static I16 join_high_words(I32 a, I32 b) {
    const __m512i halves =
        _mm512_broadcast_i32x4(_mm_setr_epi8(2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15));
    return {_mm512_mask_shuffle_epi8(b, 0x3333333333333333u, a, halves)};
  }
  static I16 max_u16(I16 a, I16 b) { return {_mm512_max_epu16(a.v, b.v)}; }
  static I16 sub_u16(I16 a, I16 b) { return {_mm512_subs_epu16(a.v, b.v)}; }
  // Ten-bit words to bytes and into each other's gaps, both on port 5.
  [[gnu::always_inline]] static I32 join_codes(I16 a, I16 b) {
    const __m512i bits = _mm512_set1_epi64(0x3232222212120202);
    return _mm512_mask_multishift_epi64_epi8(_mm512_multishift_epi64_epi8(bits, a.v), 0xaaaaaaaaaaaaaaaau, bits, b.v);
  }
  [[gnu::always_inline]] static I32 exp2_codes(I32 codes) {
    const uint8_t* table = kByteTable.v.data();
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(table), codes, _mm512_load_si512(table + 64));
    const __m512i high =
        _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), codes, _mm512_load_si512(table + 192));
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(codes), high);
  }
  [[gnu::always_inline]] static I16 bf16_of_words(I16 w) {
    const __m512i table = _mm512_load_si512(kMantissaTable.v.data());
    const __m512i excess = _mm512_maskz_permutexvar_epi8(0x5555555555555555u, _mm512_srli_epi16(w.v, 1), table);
    return {_mm512_sub_epi16(w.v, excess)};
  }

 private:
  struct alignas(64) Config {  // the operand of ldtilecfg
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static_assert(sizeof(Config) == 64);
  static const Config kConfig;
};

inline const Amx::Config Amx::kConfig{};

}  // namespace clary
