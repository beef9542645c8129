// The machine of the kernels (src/cuda/arch) on the host: same names, plain C++, from the definitions in the PTX ISA.
// Fragment maps are written out here once more instead of taken from src/cuda/layout, which they check.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "cuda/emulator/block.h"
#include "cuda/layout/target.h"
#include "support/data.h"

namespace clary::emulated {

using cuda::Element;
using cuda::Words;

// e4m3: sign, 4 bits of exponent (bias 7), 3 of mantissa, no infinity, 0x7f NaN.
inline float float_from_e4m3(uint8_t x) {
  const int exponent = (x >> 3) & 15, mantissa = x & 7;
  if ((x & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return x & 0x80 ? -value : value;
}
inline uint8_t e4m3_from_float(float x) {
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) return sign | 0x7f;
  const float a = std::min(std::abs(x), 448.0f);
  int exponent = a == 0 ? -6 : std::max(-6, std::ilogb(a));
  int mantissa = static_cast<int>(std::nearbyint(std::ldexp(a, 3 - exponent)));  // 8 .. 16 unless subnormal
  if (mantissa == 16) mantissa = 8, ++exponent;
  const int code = mantissa < 8 ? mantissa : (exponent + 7) * 8 + mantissa - 8;
  return static_cast<uint8_t>(sign | code);
}

// Element `i` of the row of bytes `row` as an operand.
inline float operand(const std::byte* row, Element e, int i) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(row);
  uint16_t half = 0;
  if (bits_of(e) == 16) std::memcpy(&half, bytes + 2 * i, 2);
  switch (e) {
    case Element::s8: return static_cast<int8_t>(bytes[i]);
    case Element::s4: return static_cast<float>(static_cast<int8_t>(bytes[i / 2] << (i % 2 ? 0 : 4)) >> 4);
    case Element::f16: return support::float_from_f16(half);
    case Element::bf16: return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
    case Element::e4m3: return float_from_e4m3(bytes[i]);
  }
  return 0;
}
// Sum over 32 bytes of k of a times b; exact for integers, in f32 otherwise.
inline float dot_32_bytes(const float* a, const float* b, int count) {
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

struct Machine {
  static constexpr bool kHasE4m3 = true;

  static int thread() { return block().thread(); }
  static int threads() { return block().threads(); }
  static int64_t block_x() { return block().index().x; }
  static int64_t block_y() { return block().index().y; }
  static int64_t block_z() { return block().index().z; }
  static int64_t blocks_x() { return block().size().x; }

  template <class T>
  static T shuffle_xor(T value, int lanes) {
    struct Operand {
      T value, result;
      int lanes;
    } mine{value, value, lanes};
    block().meet_warp("shuffle", &mine, [](void* const(&all)[32]) {
      for (int lane = 0; lane < 32; ++lane) {
        auto* const to = static_cast<Operand*>(all[lane]);
        if (to->lanes != static_cast<Operand*>(all[0])->lanes) fault("shuffle: lanes disagree on the distance");
        to->result = static_cast<Operand*>(all[lane ^ to->lanes])->value;
      }
    });
    return mine.result;
  }
  static bool all(bool value) {
    struct Operand {
      bool value, result;
    } mine{value, false};
    block().meet_warp("vote", &mine, [](void* const(&lanes)[32]) {
      bool result = true;
      for (void* lane : lanes) result = result && static_cast<Operand*>(lane)->value;
      for (void* lane : lanes) static_cast<Operand*>(lane)->result = result;
    });
    return mine.result;
  }
  static uint32_t ballot(bool value) {
    struct Operand {
      bool value;
      uint32_t result;
    } mine{value, 0};
    block().meet_warp("ballot", &mine, [](void* const(&lanes)[32]) {
      uint32_t result = 0;
      for (int lane = 0; lane < 32; ++lane)
        result |= static_cast<uint32_t>(static_cast<Operand*>(lanes[lane])->value) << lane;
      for (void* lane : lanes) static_cast<Operand*>(lane)->result = result;
    });
    return mine.result;
  }
  static int trailing_zeros(uint32_t x) { return std::countr_zero(x); }
  static void sync() { block().meet_block(0, threads()); }
  static bool sync_or(bool value) {
    static bool any = false;
    any = any || value;
    sync();
    const bool result = any;
    sync();
    if (thread() == 0) any = false;
    sync();
    return result;
  }

  static float exp2(float x) {
    const float y = std::exp2(x);
    return y < std::numeric_limits<float>::min() ? 0 : y;  // .ftz
  }
  static float log2(float x) { return std::log2(x); }
  static float fma(float a, float b, float c) { return std::fma(a, b, c); }
  static float maximum(float a, float b) { return std::fmax(a, b); }
  static int maximum(int a, int b, int c) { return std::max({a, b, c}); }
  static float divide(float a, float b) { return a / b; }
  static float to_float(int x) { return static_cast<float>(x); }
  static float to_float(float x) { return x; }
  static int to_int(float x) {
    if (std::isnan(x)) return 0;
    return x >= 0x1p31f ? 0x7fffffff : x <= -0x1p31f ? -0x7fffffff - 1 : static_cast<int>(std::nearbyint(x));
  }
  static int multiply_high(int a, int b, int64_t c) {
    int64_t sum = 0;
    if (__builtin_add_overflow(int64_t{a} * b, c, &sum)) fault("multiply_high: %d x %d is beyond 64 bits", a, b);
    return static_cast<int>(sum >> 32);
  }
  static uint32_t pack_u16(int a, int b) {
    return static_cast<uint32_t>(std::clamp(a, 0, 0xffff)) | static_cast<uint32_t>(std::clamp(b, 0, 0xffff)) << 16;
  }
  static uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    const auto half = [](uint32_t x, int i) { return support::float_from_f16(static_cast<uint16_t>(x >> 16 * i)); };
    return f16x2(std::fma(half(a, 0), half(b, 0), half(c, 0)), std::fma(half(a, 1), half(b, 1), half(c, 1)));
  }
  static uint32_t bits(float x) { return std::bit_cast<uint32_t>(x); }
  static float from_bits(uint32_t x) { return std::bit_cast<float>(x); }
  static uint32_t f16x2(float a, float b) {
    return support::f16_from_float(a) | static_cast<uint32_t>(support::f16_from_float(b)) << 16;
  }
  static uint32_t bf16x2(float a, float b) {
    return support::bf16_from_float(a) | static_cast<uint32_t>(support::bf16_from_float(b)) << 16;
  }
  static float from_f16(uint16_t x) { return support::float_from_f16(x); }
  static float from_bf16(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }
  static uint32_t e4m3x4(float a, float b, float c, float d) {
    return e4m3_from_float(a) | static_cast<uint32_t>(e4m3_from_float(b)) << 8 |
           static_cast<uint32_t>(e4m3_from_float(c)) << 16 | static_cast<uint32_t>(e4m3_from_float(d)) << 24;
  }

  static uint32_t e4m3x4_of_f16(uint32_t ab, uint32_t cd) {
    const auto half = [](uint32_t x, int i) { return support::float_from_f16(static_cast<uint16_t>(x >> 16 * i)); };
    return e4m3x4(half(ab, 0), half(ab, 1), half(cd, 0), half(cd, 1));
  }

  template <class T>
  static T at_shared(uint32_t address) {
    T value;
    std::memcpy(&value, block().shared(address, sizeof value, sizeof value), sizeof value);
    return value;
  }
  static uint32_t load_shared(uint32_t address) { return at_shared<uint32_t>(address); }
  static Words load_shared_16(uint32_t address) { return at_shared<Words>(address); }
  static void store_shared(uint32_t address, uint32_t v) { std::memcpy(block().shared(address, 4, 4), &v, 4); }
  static void maximum_shared(uint32_t address, uint32_t v) { store_shared(address, std::max(load_shared(address), v)); }
  static void load_matrices(uint32_t (&r)[4], uint32_t address) {
    struct Operand {
      uint32_t address, *r;
    } mine{address, r};
    block().meet_warp("ldmatrix", &mine, [](void* const(&lanes)[32]) {
      for (int lane = 0; lane < 32; ++lane)
        for (int q = 0; q < 4; ++q) {
          const uint32_t row = static_cast<Operand*>(lanes[8 * q + lane / 4])->address;
          if (row % 16 != 0) fault("ldmatrix: row at %u is not a multiple of 16", row);
          static_cast<Operand*>(lanes[lane])->r[q] = load_shared(row + 4u * static_cast<uint32_t>(lane % 4));
        }
    });
  }

  static void copy_16(uint32_t to, const void* from) {
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) fault("cp.async from an address that is no multiple of 16");
    std::byte* const target = block().shared(to, 16, 16);
    std::memset(target, 0xff, 16);
    block().copies().add([target, from] { std::memcpy(target, from, 16); });
  }
  static void copy_commit() { block().copies().commit(); }
  template <int kPending>
  static void copy_wait() {
    block().copies().wait(kPending);
  }

  // D += A B of one warp: 16 x 8, 32 bytes of k.
  template <Element E, class D>
  static void mma(D (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Operand {
      D* d;
      uint32_t a[4], b[2];
    } mine{d, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    block().meet_warp("mma", &mine, [](void* const(&lanes)[32]) {
      constexpr int kCount = 256 / bits_of(E);
      float a_rows[16][kCount], b_rows[8][kCount];
      std::byte bytes[16][32];
      for (int lane = 0; lane < 32; ++lane)
        for (int r = 0; r < 4; ++r)  // r: rows g, g + 8, then the same 16 bytes on
          std::memcpy(&bytes[lane / 4 + 8 * (r % 2)][4 * (lane % 4) + 16 * (r / 2)],
                      &static_cast<Operand*>(lanes[lane])->a[r], 4);
      for (int row = 0; row < 16; ++row)
        for (int k = 0; k < kCount; ++k) a_rows[row][k] = operand(bytes[row], E, k);
      for (int lane = 0; lane < 32; ++lane)
        for (int r = 0; r < 2; ++r)
          std::memcpy(&bytes[lane / 4][4 * (lane % 4) + 16 * r], &static_cast<Operand*>(lanes[lane])->b[r], 4);
      for (int row = 0; row < 8; ++row)
        for (int k = 0; k < kCount; ++k) b_rows[row][k] = operand(bytes[row], E, k);
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i)
          static_cast<Operand*>(lanes[lane])->d[i] +=
              static_cast<D>(dot_32_bytes(a_rows[lane / 4 + 8 * (i / 2)], b_rows[2 * (lane % 4) + i % 2], kCount));
    });
  }

  // ---- sm_90 ----
  static void barrier_init(uint32_t barrier, int count) { block().barrier(barrier) = {count, count, 0, 0}; }
  static void barrier_init_done() {}
  static void shared_writes_done() {}
  static void barrier_arrive(uint32_t barrier) { block().barrier(barrier).arrive(); }
  static void barrier_expect(uint32_t barrier, int bytes) {
    block().barrier(barrier).expected_bytes += bytes;
    block().barrier(barrier).arrive();
  }
  static void barrier_wait(uint32_t barrier, uint32_t parity) {
    block().wait("an mbarrier", [barrier, parity] {
      const auto done = [&] { return (block().barrier(barrier).phase & 1) != parity; };
      if (!done()) block().do_bulk(barrier);
      return done();
    });
  }
  static void barrier_wait_warp(uint32_t barrier, uint32_t parity) {
    barrier_wait(barrier, parity);
    all(true);
  }
  static void copy_bulk(uint32_t to, const void* from, int bytes, uint32_t barrier) {
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0 || bytes % 16 != 0) fault("bulk copy: not in units of 16 bytes");
    std::byte* const target = block().shared(to, static_cast<size_t>(bytes), 16);
    std::memset(target, 0xff, static_cast<size_t>(bytes));
    block().add_bulk(barrier, [=] {
      std::memcpy(target, from, static_cast<size_t>(bytes));
      block().barrier(barrier).expected_bytes -= bytes;
      block().barrier(barrier).complete_if_done();
    });
  }
  static void turn_wait(int id) { block().meet_block(id, 256); }
  static void turn_pass(int id) { block().arrive_block(id, 256); }
  template <int kRegisters>
  static void take_registers() {}
  template <int kRegisters>
  static void give_registers() {}

  static void fence_products() {}
  static void commit_products() {
    block().meet_warp("commit", nullptr, [](void* const(&)[32]) { block().products().commit(); });
  }
  template <int kPending>
  static void wait_products() {
    block().meet_warp("wait", nullptr, [](void* const(&)[32]) { block().products().wait(kPending); });
  }
  template <class T, int kTiles>
  static void pin(T (&)[kTiles][4]) {}

  // 32 bytes of row `row` of a K-major operand in shared memory.
  static void descriptor_row(uint32_t low, uint32_t high, int row, std::byte* to) {
    const uint32_t mode = high >> 30, width = mode == 1 ? 128 : mode == 2 ? 64 : 32;
    const uint32_t stride = (high & 0x3fff) << 4, r = static_cast<uint32_t>(row);
    for (uint32_t byte = 0; byte < 32; byte += 16) {
      uint32_t at = ((low & 0x3fff) << 4) + r / 8 * stride + r % 8 * width + byte;
      at ^= (at >> 7 & (width / 16 - 1)) << 4;
      std::memcpy(to + byte, block().shared(at, 16, 16), 16);
    }
  }

  struct Product {
    void* d;            // this lane's accumulators, [columns / 8][4]
    const uint32_t* a;  // this lane's registers of A, or nullptr
    uint32_t a_low, a_high, b_low, b_high;
    int accumulate, warp;
  };
  // A warp's 16 rows of the product of its group.
  template <Element E, int kColumns, class D>
  static void multiply(const Product (&lanes)[32]) {
    constexpr int kCount = 256 / bits_of(E);
    std::byte bytes[32];
    std::byte rows[16][32];
    float a[16][kCount], b[kColumns][kCount];
    const Product& first = lanes[0];
    for (int row = 0; row < 16; ++row)
      if (first.a == nullptr) descriptor_row(first.a_low, first.a_high, 16 * first.warp + row, rows[row]);
    if (first.a != nullptr)
      for (int lane = 0; lane < 32; ++lane)
        for (int r = 0; r < 4; ++r)
          std::memcpy(&rows[lane / 4 + 8 * (r % 2)][4 * (lane % 4) + 16 * (r / 2)], &lanes[lane].a[r], 4);
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < kCount; ++k) a[row][k] = operand(rows[row], E, k);
    for (int column = 0; column < kColumns; ++column) {
      descriptor_row(first.b_low, first.b_high, column, bytes);
      for (int k = 0; k < kCount; ++k) b[column][k] = operand(bytes, E, k);
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < kColumns / 2; ++i) {
        D& d = static_cast<D*>(lanes[lane].d)[i];
        const float sum = dot_32_bytes(a[lane / 4 + 8 * (i / 2 % 2)], b[i / 4 * 8 + 2 * (lane % 4) + i % 2], kCount);
        d = static_cast<D>(sum) + (first.accumulate ? d : D{0});
      }
  }
  template <Element E, int kColumns, class D>
  static void issue(Product mine) {
    mine.warp = thread() % 128 / 32;
    block().meet_warp("wgmma", &mine, [](void* const(&lanes)[32]) {
      struct Lanes {
        Product all[32];
      } copy;
      for (int lane = 0; lane < 32; ++lane) copy.all[lane] = *static_cast<Product*>(lanes[lane]);
      // Until it is waited for, the result is anything.
      if (!copy.all[0].accumulate)
        for (const Product& lane : copy.all) std::fill_n(static_cast<D*>(lane.d), kColumns / 2, D(-77777));
      block().products().add([copy] { multiply<E, kColumns, D>(copy.all); });
    });
  }
  template <Element E, int kColumns, uint32_t kHighA, uint32_t kHighB, class D>
  static void product_ss(D (*d)[4], uint32_t a_low, uint32_t b_low, int accumulate) {
    issue<E, kColumns, D>({d, nullptr, a_low, kHighA, b_low, kHighB, accumulate, 0});
  }
  template <Element E, int kColumns, uint32_t kHighB>
  static void product_rs(float (*d)[4], const uint32_t (&a)[4], uint32_t b_low, int accumulate) {
    issue<E, kColumns, float>({d, a, 0, 0, b_low, kHighB, accumulate, 0});
  }
};

}  // namespace clary::emulated
