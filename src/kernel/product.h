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

  struct Zero {
    I32 operator()(int) const { return V::set_i32(0); }
  };

  // kRows rows x the first N of the Packed vectors of each step; then emit(row, acc[N]) per row. `hook` is other work,
  // called kHooks times with its turn, each time a quarter of the steps is done: it fills the ports that products leave
  // idle. Steps: int, or integral_constant, whose value is a multiple of 4 kHooks.
  template <int N, int Packed, class Steps, class Emit, class Hook = NoHook, class Start = Zero>
  [[gnu::always_inline]] static void run(const uint32_t* a, int64_t a_stride, const uint32_t* b, Steps steps,
                                         Emit&& emit, Hook&& hook = {}, Start&& start = {}) {
    Acc acc[kRows][N];
    if constexpr (std::is_same_v<Steps, int>) {
      multiply(acc, a, a_stride, b, Packed, steps, hook);
      unroll<kRows>([&](auto r) __attribute__((always_inline)) { emit(static_cast<int>(r), acc[r]); });
    } else {
      static_assert(N == Packed);
      run_fixed<Steps::value>(acc, a, a_stride, b, emit, hook, start);
    }
  }

  // Where N vectors are more than a register tile has: `rows` rows (a multiple of kRows), one vector after the other.
  // One vector of all steps (8 KB of f32 at head dim 128) then stays in L1 for all rows; `b` as a whole would not.
  template <int N>
  static constexpr bool kByVectors = (N > V::kTileVectors);
  template <int N, int Packed, class Emit>
  [[gnu::always_inline]] static void run_by_vectors(const uint32_t* a, int64_t a_stride, const uint32_t* b, int steps,
                                                    int rows, int32_t* raw, Emit&& emit) {
    for (int n = 0; n < N; n += V::kTileVectors)
      for (int row = 0; row < rows;) {
        // 16 rows = 6 + 6 + 4: never a rest of 2.
        const bool wide = kWideRows != kRows && (rows - row == kWideRows || rows - row >= kRows + kWideRows);
        wide ? store_rows<kWideRows, N, Packed>(a, a_stride, b, steps, row, n, raw)
             : store_rows<kRows, N, Packed>(a, a_stride, b, steps, row, n, raw);
        row += wide ? kWideRows : kRows;
      }
    for (int r = 0; r < rows; ++r) emit_from<N>(raw, r, emit);
  }

  // Where a vector alone is a tile's width: as by vectors, but from the registers. Accumulators of row r begin at
  // start(r); emit(r, vector, acc).
  template <int N, int Packed, class Start, class Emit>
  [[gnu::always_inline]] static void run_in_quarters(const uint32_t* a, int64_t a_stride, const uint32_t* b, int steps,
                                                     int rows, Start&& start, Emit&& emit) {
    for (int n = 0; n < N; ++n)
      for (int row = 0; row < rows; row += kRows) {
        Acc acc[kRows][1];
        unroll<kRows>([&](auto r) __attribute__((always_inline)) { acc[r][0] = from_bits(start(row + r)); });
        multiply_steps(acc, a + row * a_stride, a_stride, b + n * 16, Packed * 16, 0, steps);
        unroll<kRows>([&](auto r) __attribute__((always_inline)) { emit(row + r, n, acc[r][0]); });
      }
  }

 private:
  // Rows of a register tile whose steps need no temporaries.
  static constexpr int kWideRows = E == Element::f32 || E == Element::i8w ? V::kWideTileRows : V::kTileRows;

  template <int R, int N, int Packed>
  [[gnu::always_inline]] static void store_rows(const uint32_t* a, int64_t a_stride, const uint32_t* b, int steps,
                                                int row, int n, int32_t* raw) {
    Acc acc[R][V::kTileVectors];
    multiply(acc, a + row * a_stride, a_stride, b + n * 16, Packed, steps, NoHook());
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
  template <int L, class Quad>
  [[gnu::always_inline]] static Acc step_lane(Acc acc, I32 packed, Quad row) {
    if constexpr (E == Element::f32) {
      return V::template mul_add_lane<L>(V::as_f32(packed), row, acc);
    } else if constexpr (U == Unsigned::packed) {
      return V::template dot4_ss_lane<L>(acc, packed, row);
    } else {
      return V::template dot4_uu_lane<L>(acc, packed, row);
    }
  }
  template <class Quad>
  [[gnu::always_inline]] static Acc step_pair(Acc acc, I32 packed, Quad rows) {
    if constexpr (E == Element::bf16) {
      return V::dot4_bf16(acc, rows, packed);
    } else if constexpr (U == Unsigned::packed) {
      return V::dot8_ss(acc, rows, packed);
    } else {
      return V::dot8_us(acc, rows, packed);
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
      keep(acc);
      unroll<kHooks>([&](auto turn) __attribute__((always_inline)) {
        multiply_steps(acc, a, a_stride, b, b_stride, steps * turn / kHooks, steps * (turn + 1) / kHooks);
        hook(turn);
        // Without this the compiler moves accumulators to the stack to make room for the hook's temporaries.
        keep(acc);
      });
    }
  }

  // For the compiler: each accumulator is in its register here.
  template <int R, int N>
  [[gnu::always_inline]] static void keep(Acc (&acc)[R][N]) {
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<N>([&](auto v) __attribute__((always_inline)) { V::keep(acc[r][v]); });
    });
  }

  template <int R, int N>
  [[gnu::always_inline]] static void multiply_steps(Acc (&acc)[R][N], const uint32_t* a, int64_t a_stride,
                                                    const uint32_t* b, int64_t b_stride, int begin, int end) {
    b += begin * b_stride;
    if constexpr (kInPairs<V, E>) {  // here and by lanes steps come in fours, and begin at 0
      multiply_pairs(acc, a, a_stride, b, b_stride, end);
    } else if constexpr (V::kLanes) {
      for (int s = 0; s < end; s += 4, b += 4 * b_stride) multiply_lanes(acc, a + s, a_stride, b, b_stride);
    } else {
#pragma GCC unroll 4
      for (int s = begin; s < end; ++s, b += b_stride) multiply_step(acc, a + s, a_stride, b);
    }
  }

  // The last steps go row by row: what emit does to one row then meets products of the next in the ports' queues. After
  // all rows at once it would fill them alone.
  template <int Steps, int R, int N, class Emit, class Hook, class Start>
  [[gnu::always_inline]] static void run_fixed(Acc (&acc)[R][N], const uint32_t* a, int64_t a_stride, const uint32_t* b,
                                               Emit&& emit, Hook&& hook, Start&& start) {
    constexpr int kQuarter = (Steps - kByRow) / kHooks, kStride = N * 16;
    static_assert(kHooks * kQuarter + kByRow == Steps);
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<N>([&](auto v) __attribute__((always_inline)) { acc[r][v] = from_bits(start(r)); });
    });
    keep(acc);
    unroll<kHooks>([&](auto turn) __attribute__((always_inline)) {
      multiply_fixed<kQuarter>(acc, a + turn * kQuarter, a_stride, b + turn * kQuarter * kStride, kStride);
      hook(turn);
      // Without this the compiler moves accumulators to the stack to make room for the hook's temporaries.
      keep(acc);
    });
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<kByRow>([&](auto i) __attribute__((always_inline)) {
        constexpr int s = Steps - kByRow + i;
        const I32 broadcast = V::set_i32(static_cast<int32_t>(a[r * a_stride + s]));
        unroll<N>([&](auto v) __attribute__((always_inline)) {
          acc[r][v] = step(acc[r][v], V::load_i32(b + s * kStride + v * 16), broadcast);
        });
      });
      emit(static_cast<int>(r), acc[r]);
      keep(acc);
    });
  }
  static constexpr int kByRow = 4;

  // Compilers are told how far to unroll: what they find out about a constant bound comes too late for it.
  template <int Steps, int R, int N>
  [[gnu::always_inline]] static void multiply_fixed(Acc (&acc)[R][N], const uint32_t* a, int64_t a_stride,
                                                    const uint32_t* b, int64_t b_stride) {
    constexpr int kAtOnce = Steps <= 8 ? Steps : Steps % 5 == 0 ? 5 : 4, kRest = Steps % kAtOnce;
    for (int s = 0; s < Steps - kRest; s += kAtOnce, a += kAtOnce, b += kAtOnce * b_stride)
      unroll<kAtOnce>([&](auto i)
                          __attribute__((always_inline)) { multiply_step(acc, a + i, a_stride, b + i * b_stride); });
    unroll<kRest>([&](auto i)
                      __attribute__((always_inline)) { multiply_step(acc, a + i, a_stride, b + i * b_stride); });
  }

  template <int R, int N>
  [[gnu::always_inline]] static void multiply_step(Acc (&acc)[R][N], const uint32_t* a, int64_t a_stride,
                                                   const uint32_t* b) {
    I32 packed[N];
    unroll<N>([&](auto v) __attribute__((always_inline)) { packed[v] = V::load_i32(b + v * 16); });
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      const I32 broadcast = V::set_i32(static_cast<int32_t>(a[r * a_stride]));
      unroll<N>([&](auto v) __attribute__((always_inline)) { acc[r][v] = step(acc[r][v], packed[v], broadcast); });
    });
  }

  // Four steps.
  template <int R, int N>
  [[gnu::always_inline]] static void multiply_lanes(Acc (&acc)[R][N], const uint32_t* a, int64_t a_stride,
                                                    const uint32_t* b, int64_t b_stride) {
    typename V::Quad rows[R];
    unroll<R>([&](auto r) __attribute__((always_inline)) { rows[r] = V::load_quad(a + r * a_stride); });
    unroll<4>([&](auto l) __attribute__((always_inline)) {
      unroll<N>([&](auto v) __attribute__((always_inline)) {
        const I32 packed = V::load_i32(b + l * b_stride + v * 16);
        unroll<R>([&](auto r) __attribute__((always_inline)) { acc[r][v] = step_lane<l>(acc[r][v], packed, rows[r]); });
      });
      // Without this g++ 12 loads all four steps first and has no registers left. The loop over f32 fits, and gets a
      // copy of some accumulators from more than one.
      if constexpr (E != Element::f32 || l == 3) keep(acc);
    });
  }

  // `steps`: a multiple of 4. Accumulators of rows 2 p and 2 p + 1 hold both rows for half of the lanes until the end.
  template <int R, int N>
  [[gnu::always_inline]] static void multiply_pairs(Acc (&acc)[R][N], const uint32_t* a, int64_t a_stride,
                                                    const uint32_t* b, int64_t b_stride, int steps) {
    for (int s = 0; s < steps; s += 4, b += 4 * b_stride) {
      typename V::Quad rows[R];  // two steps of two rows
      unroll<R>([&](auto i) __attribute__((always_inline)) {
        rows[i] = V::load_quad(a + i / 2 * 2 * a_stride + 2 * s + i % 2 * 4);
      });
      unroll<4>([&](auto l) __attribute__((always_inline)) {
        unroll<N>([&](auto v) __attribute__((always_inline)) {
          const I32 packed = V::load_i32(b + l * b_stride + v * 16);
          unroll<R / 2>([&](auto p) __attribute__((always_inline)) {
            acc[2 * p + l % 2][v] = step_pair(acc[2 * p + l % 2][v], packed, rows[2 * p + l / 2]);
          });
        });
        keep(acc);  // or accumulators change places, with copies
      });
    }
    unroll<R / 2>([&](auto p) __attribute__((always_inline)) {
      unroll<N>([&](auto v) __attribute__((always_inline)) { V::split_rows(acc[2 * p][v], acc[2 * p + 1][v]); });
    });
  }
};

}  // namespace clary
