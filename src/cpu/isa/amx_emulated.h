// The tile operations in plain C++: their executable specification, and the way to run the matrix engine's code on a
// machine without one. Eight registers per thread, each of 16 rows x 64 bytes.
//
// A product C += A B takes A as 16 rows of K, and B with 4 (bytes) or 2 (bf16) consecutive K of one column in each
// dword: C[m][n] += sum over k < 16 of dot(dword k of row m of A, dword n of row k of B).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/isa/scalar.h"

namespace clary {

struct AmxEmulated : Scalar {
  static constexpr const char* kName = "amx-emulated";
  static constexpr bool kHasTiles = true;
  static constexpr bool kVectorsAreLoops = true;

  static bool request_permission() { return true; }

  // Per thread, before any other tile operation; clears all registers. Without it the others trap, as on the hardware.
  [[gnu::noinline]] static void tile_config() { registers_ = {{}, true}; }
  [[gnu::noinline]] static void tile_release() { registers_.configured = false; }
  template <int T>
  [[gnu::noinline]] static void tile_zero() {
    tile<T>() = {};
  }
  // Row i at p + i * stride_bytes; the stride may be 0 (all rows alike) or negative, and needs no alignment.
  template <int T>
  static void tile_load(const void* p, int64_t stride_bytes) {
    load_rows(tile<T>(), static_cast<const char*>(p), stride_bytes);
  }
  template <int T>
  static void tile_store(void* p, int64_t stride_bytes) {
    store_rows(tile<T>(), static_cast<char*>(p), stride_bytes);
  }
  // As tile_load, for what is not used again soon: it need not displace anything in the first cache.
  template <int T>
  [[gnu::noinline]] static void tile_load_once(const void* p, int64_t stride_bytes) {
    tile_load<T>(p, stride_bytes);
  }
  // Signed bytes by signed bytes; sums are exact modulo 2^32.
  template <int C, int A, int B>
  [[gnu::noinline]] static void tile_dot4_ss() {
    multiply_bytes<int8_t>(tile<C>(), tile<A>(), tile<B>());
  }
  // Signed bytes of A by unsigned bytes of B.
  template <int C, int A, int B>
  [[gnu::noinline]] static void tile_dot4_su() {
    multiply_bytes<uint8_t>(tile<C>(), tile<A>(), tile<B>());
  }
  // bf16. As tdpbf16ps is specified: low and high products are summed apart, each from zero and in the order of k by
  // fused multiply-adds; then low + high is added to C. Denormal inputs and results are zero.
  template <int C, int A, int B>
  [[gnu::noinline]] static void tile_dot2() {
    multiply_bf16(tile<C>(), tile<A>(), tile<B>());
  }

  // ---- words of 16 bits, for what lies between two tile products
  [[gnu::noinline]] static I16 as_i16(const I32& a) { return std::bit_cast<I16>(a); }
  [[gnu::noinline]] static I32 as_words(const I16& a) { return std::bit_cast<I32>(a); }
  // The low words of a and b, side by side in every lane.
  [[gnu::noinline]] static I16 join_words(const I32& a, const I32& b) {
    return as_i16(each<I32>([&](int i) {
      return static_cast<int32_t>((static_cast<uint32_t>(a.v[i]) & 0xffff) | static_cast<uint32_t>(b.v[i]) << 16);
    }));
  }
  // The high words of a and b, side by side in every lane.
  [[gnu::noinline]] static I16 join_high_words(const I32& a, const I32& b) {
    return as_i16(each<I32>([&](int i) {
      return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> 16 | (static_cast<uint32_t>(b.v[i]) & 0xffff0000u));
    }));
  }
  [[gnu::noinline]] static I16 max_u16(const I16& a, const I16& b) {
    return each<I16>(
        [&](int i) { return static_cast<uint16_t>(a.v[i]) > static_cast<uint16_t>(b.v[i]) ? a.v[i] : b.v[i]; });
  }
  // a - b, or 0 where b is larger; unsigned
  [[gnu::noinline]] static I16 sub_u16(const I16& a, const I16& b) {
    return each<I16>([&](int i) {
      const auto x = static_cast<uint16_t>(a.v[i]), y = static_cast<uint16_t>(b.v[i]);
      return static_cast<int16_t>(x > y ? x - y : 0);
    });
  }
  // Bits 2 to 9 of the words of a and of b, side by side in every word.
  [[gnu::noinline]] static I32 join_codes(const I16& a, const I16& b) {
    return as_words(
        each<I16>([&](int i) { return static_cast<int16_t>((a.v[i] >> 2 & 255) | (b.v[i] >> 2 & 255) << 8); }));
  }
  // 255 * 2^((c - 255) / 28) of every byte, as a byte.
  [[gnu::noinline]] static I32 exp2_codes(const I32& codes) {
    uint8_t x[64];
    std::memcpy(x, &codes, 64);
    for (uint8_t& c : x) c = kByteTable.v[c];
    return read<I32>(x);
  }
  // 2^(w / 128 - 127) as bf16, from a bf16 whose mantissa is linear to one that is right.
  [[gnu::noinline]] static I16 bf16_of_words(const I16& w) {
    return each<I16>([&](int i) {
      return static_cast<int16_t>(w.v[i] - kMantissaTable.v[static_cast<uint16_t>(w.v[i]) >> 1 & 63]);
    });
  }

 private:
  struct Tile {
    uint32_t row[16][16];
  };
  struct Registers {
    Tile tile[8];
    bool configured;
  };
  static inline thread_local Registers registers_{};

  template <int T>
  static Tile& tile() {
    static_assert(T >= 0 && T < 8);
    if (!registers_.configured) __builtin_trap();
    return registers_.tile[T];
  }
  // Not inlined: unrolled kernels have hundreds of these, and loops take minutes to compile.
  [[gnu::noinline]] static void load_rows(Tile& tile, const char* p, int64_t stride_bytes) {
    for (int i = 0; i < 16; ++i) std::memcpy(tile.row[i], p + i * stride_bytes, 64);
  }
  [[gnu::noinline]] static void store_rows(const Tile& tile, char* p, int64_t stride_bytes) {
    for (int i = 0; i < 16; ++i) std::memcpy(p + i * stride_bytes, tile.row[i], 64);
  }
  template <class Byte>
  [[gnu::noinline]] static void multiply_bytes(Tile& c, const Tile& a, const Tile& b) {
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < 16; ++n)
        for (int k = 0; k < 16; ++k)
          for (int i = 0; i < 32; i += 8) {
            const int product = static_cast<int8_t>(a.row[m][k] >> i) * static_cast<Byte>(b.row[k][n] >> i);
            c.row[m][n] += static_cast<uint32_t>(product);
          }
  }
  [[gnu::noinline]] static void multiply_bf16(Tile& c, const Tile& a, const Tile& b) {
    constexpr uint32_t kHigh = 0xffff0000u;
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < 16; ++n) {
        float low = 0, high = 0;
        for (int k = 0; k < 16; ++k) {
          const uint32_t x = a.row[m][k], y = b.row[k][n];
          low = flush(std::fma(flush(std::bit_cast<float>(x << 16)), flush(std::bit_cast<float>(y << 16)), low));
          high = flush(std::fma(flush(std::bit_cast<float>(x & kHigh)), flush(std::bit_cast<float>(y & kHigh)), high));
        }
        c.row[m][n] = std::bit_cast<uint32_t>(flush(flush(std::bit_cast<float>(c.row[m][n])) + flush(low + high)));
      }
  }
  [[gnu::noinline]] static float flush(float x) {
    return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
  }
};

}  // namespace clary
