// The one matrix product of the engine: rows of 4-byte steps times a packed operand.
//
//   acc[row][vector] += sum over steps of  a[row][step] (broadcast)  .  b[step][vector]
//
// a 4-byte step holds 4 INT8, 2 INT8 in words, 2 bf16 or 1 f32; `b` is packed as in quant/pack.h. QK^T: a = Q, b = K,
// lanes are keys. PV: a = P, b = V, lanes are channels. Each lane sums its steps in order, so all instruction sets
// agree.
//
// Registers (AVX-512, 4 x 4): 16 accumulators + 4 of b + 1 broadcast = 21 of 32. Per step 4 loads and 4 broadcasts
// feed 16 multiply-adds: at two loads and one multiply-add per cycle the loads take half the time.
// A matrix engine has layouts and products of its own: kernel/tiles.
#pragma once

#include "kernel/scheme.h"

namespace clary {

// Which operand of an 8-bit product is unsigned: K (stored with +128) in QK^T, P in PV.
enum class Unsigned : uint8_t { packed, broadcast };

// Turns of a hook per register tile.
inline constexpr int kHooks = 4;
struct NoHook {
  void operator()(int) const {}
};

template <class V, Element E, Unsigned U>
struct Product {
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  static constexpr bool kInteger = E == Element::i8 || E == Element::i4 || E == Element::i8w;
  using Acc = std::conditional_t<kInteger, I32, F32>;
  // Rows of one call.
  static constexpr int kRows = V::kTileRows;

  // kRows rows x N vectors; then emit(row, acc[N]) per row. `hook` is other work, called kHooks times with its turn,
  // each time a quarter of the steps is done: it fills the ports that products leave idle.
  template <int N, class Emit, class Hook = NoHook>
  [[gnu::always_inline]] static void run(const uint32_t* a, int64_t a_stride, const uint32_t* b, int steps, Emit&& emit,
                                         Hook&& hook = {}) {
    Acc acc[kRows][N];
    multiply(acc, a, a_stride, b, N, steps, hook);
    unroll<kRows>([&](auto r) __attribute__((always_inline)) { emit(static_cast<int>(r), acc[r]); });
  }

  // Where N vectors are more than a register tile has: `rows` rows (a multiple of kRows), one vector after the other.
  // One vector of all steps (8 KB of f32 at head dim 128) then stays in L1 for all rows; `b` as a whole would not.
  template <int N>
  static constexpr bool kByVectors = (N > V::kTileVectors);
  template <int N, class Emit>
  [[gnu::always_inline]] static void run_by_vectors(const uint32_t* a, int64_t a_stride, const uint32_t* b, int steps,
                                                    int rows, int32_t* raw, Emit&& emit) {
    for (int n = 0; n < N; n += V::kTileVectors)
      for (int row = 0; row < rows;) {
        // 16 rows = 6 + 6 + 4: never a rest of 2.
        const bool wide = kWideRows != kRows && (rows - row == kWideRows || rows - row >= kRows + kWideRows);
        wide ? store_rows<kWideRows, N>(a, a_stride, b, steps, row, n, raw)
             : store_rows<kRows, N>(a, a_stride, b, steps, row, n, raw);
        row += wide ? kWideRows : kRows;
      }
    for (int r = 0; r < rows; ++r) emit_from<N>(raw, r, emit);
  }

 private:
  // Rows of a register tile whose steps need no temporaries.
  static constexpr int kWideRows = E == Element::f32 || E == Element::i8w ? V::kWideTileRows : V::kTileRows;

  template <int R, int N>
  [[gnu::always_inline]] static void store_rows(const uint32_t* a, int64_t a_stride, const uint32_t* b, int steps,
                                                int row, int n, int32_t* raw) {
    Acc acc[R][V::kTileVectors];
    multiply(acc, a + row * a_stride, a_stride, b + n * 16, N, steps, NoHook());
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<V::kTileVectors>([&](auto v) __attribute__((always_inline)) {
        V::store_i32(raw + ((row + r) * N + n + v) * 16, bits(acc[r][v]));
      });
    });
  }
  [[gnu::always_inline]] static I32 bits(Acc x) {
    if constexpr (kInteger) {
      return x;
    } else {
      return V::as_i32(x);
    }
  }
  [[gnu::always_inline]] static Acc from_bits(I32 x) {
    if constexpr (kInteger) {
      return x;
    } else {
      return V::as_f32(x);
    }
  }

  template <int N, class Emit>
  [[gnu::always_inline]] static void emit_from(const int32_t* raw, int r, Emit&& emit) {
    Acc acc[N];
    unroll<N>([&](auto v) __attribute__((always_inline)) { acc[v] = from_bits(V::load_i32(raw + (r * N + v) * 16)); });
    emit(r, acc);
  }

  [[gnu::always_inline]] static Acc step(Acc acc, I32 packed, I32 broadcast) {
    if constexpr (E == Element::f32) {
      return V::mul_add(V::as_f32(packed), V::as_f32(broadcast), acc);
    } else if constexpr (E == Element::bf16) {
      return V::dot2(acc, packed, broadcast);
    } else if constexpr (E == Element::i8w) {
      return V::dot2_i16(acc, packed, broadcast);
    } else if constexpr (U == Unsigned::packed) {
      return V::dot4(acc, packed, broadcast);
    } else {
      return V::dot4(acc, broadcast, packed);
    }
  }

  template <int R, int N, class Hook>
  [[gnu::always_inline]] static void multiply(Acc (&acc)[R][N], const uint32_t* a, int64_t a_stride, const uint32_t* b,
                                              int b_vectors, int steps, Hook&& hook) {
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<N>([&](auto v) __attribute__((always_inline)) { acc[r][v] = from_bits(V::set_i32(0)); });
    });
    const int64_t b_stride = int64_t{b_vectors} * 16;
    if constexpr (std::is_same_v<std::remove_cvref_t<Hook>, NoHook>) {
      multiply_steps(acc, a, a_stride, b, b_stride, 0, steps);
    } else {
      unroll<kHooks>([&](auto turn) __attribute__((always_inline)) {
        multiply_steps(acc, a, a_stride, b, b_stride, steps * turn / kHooks, steps * (turn + 1) / kHooks);
        hook(turn);
        // Without this the compiler moves accumulators to the stack to make room for the hook's temporaries.
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          unroll<N>([&](auto v) __attribute__((always_inline)) { V::keep(acc[r][v]); });
        });
      });
    }
  }

  template <int R, int N>
  [[gnu::always_inline]] static void multiply_steps(Acc (&acc)[R][N], const uint32_t* a, int64_t a_stride,
                                                    const uint32_t* b, int64_t b_stride, int begin, int end) {
    b += begin * b_stride;
#pragma GCC unroll 4
    for (int s = begin; s < end; ++s, b += b_stride) {
      I32 packed[N];
      unroll<N>([&](auto v) __attribute__((always_inline)) { packed[v] = V::load_i32(b + v * 16); });
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const I32 broadcast = V::set_i32(static_cast<int32_t>(a[r * a_stride + s]));
        unroll<N>([&](auto v) __attribute__((always_inline)) { acc[r][v] = step(acc[r][v], packed[v], broadcast); });
      });
    }
  }
};

}  // namespace clary
