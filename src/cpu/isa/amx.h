// AMX (tiles, 8-bit integers, bf16) over AVX-512: eight tile registers of 16 rows x 64 bytes. Meanings of the tile
// operations: amx_emulated.h.
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
  static constexpr bool kOverlaps = false;  // products do not run on the vector ports
  static constexpr int kStepAlign = 16;     // steps of one tile

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
  template <int C, int A, int B>
  static void tile_dot4_su() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B>
  static void tile_dot4_us() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B>
  static void tile_dot2() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
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
