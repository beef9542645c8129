// Every operation of a vocabulary as a function on plain memory, so that sets compiled with different flags can be
// compared by code that knows none of them. No standard library in here: what two such units share must stay out of
// the linker's sight.
#pragma once

#include <cstdint>

namespace clary::test {

// What an operation's operands may hold; the generator is in vocabulary_test.cpp.
enum class Domain {
  kBits,        // anything
  kFloats,      // f32 without NaN
  kAllFloats,   // f32
  kHalves,      // 16-bit patterns, all of them in turn
  kNearHalves,  // f32 at or near a half or the middle of two, every half in turn
  kNearBf16,    // the same for bf16, NaN included
  kExp2,        // f32 of at most 126
  kToI32,       // f32 below 2^31
  kBf16Exact,   // f32 with 16 zero bits, no NaN, no denormals
  kSums,        // the first third of the operands: i32 of at most 2^26; the others: anything
  kBf16Pairs,   // the first third: f32; the others: pairs of bf16; all of moderate size
  kExponents,   // i16 in 0..1023, all of them in turn
  kSmall,       // f32 within 16 bits, every other one half an integer
};

enum class Result {
  kExact,  // bytes
  kFloat,  // f32: bits, but NaN equals NaN
  kValue,  // f32: by ==, so that zeros of both signs are equal
  kNear,   // f32: as kFloat, or near where the set has native products
};

constexpr int kVectorBytes = 64;
constexpr int kMaxVectors = 16 * 8;  // eight tiles

struct Operation {
  const char* name;
  Domain domain;
  Result result;
  int operands;      // vectors of 64 bytes read from `in`
  int result_bytes;  // written to `out`
  void (*run)(const uint8_t* in, uint8_t* out);
};

struct Vocabulary {
  const char* name;
  bool native_dot2;
  int count;
  Operation operations[128];

  [[gnu::always_inline]] void add(const Operation& operation) { operations[count++] = operation; }
};

// Operands and results of M in memory that is aligned to 4 bytes only.
template <class M>
struct Access {
  using F32 = typename M::F32;
  using I32 = typename M::I32;
  using I16 = typename M::I16;
  static const float* floats(const uint8_t* in, int i) { return reinterpret_cast<const float*>(in + kVectorBytes * i); }
  static F32 f32(const uint8_t* in, int i) { return M::load(floats(in, i)); }
  static I32 i32(const uint8_t* in, int i) { return M::load_i32(in + kVectorBytes * i); }
  static I16 i16(const uint8_t* in, int i) {
    return M::load_i16(reinterpret_cast<const int16_t*>(in + kVectorBytes * i));
  }
  static auto quad(const uint8_t* in, int i) {
    return M::load_quad(reinterpret_cast<const uint32_t*>(in + kVectorBytes * i));
  }
  static const uint16_t* words(const uint8_t* in) { return reinterpret_cast<const uint16_t*>(in); }
  static uint16_t* words(uint8_t* out) { return reinterpret_cast<uint16_t*>(out); }
  static float scalar(const uint8_t* in) { return *floats(in, 0); }
  static int32_t scalar_i32(const uint8_t* in) { return *reinterpret_cast<const int32_t*>(in); }
  static void put(uint8_t* out, F32 x) { M::store(reinterpret_cast<float*>(out), x); }
  static void put_i32(uint8_t* out, I32 x) { M::store_i32(out, x); }
  static void put_i16(uint8_t* out, I16 x) { M::store_i16(reinterpret_cast<int16_t*>(out), x); }
  static void put_scalar(uint8_t* out, float x) { *reinterpret_cast<float*>(out) = x; }
  static void put_scalar_i32(uint8_t* out, int32_t x) { *reinterpret_cast<int32_t*>(out) = x; }
};

using In = const uint8_t*;
using Out = uint8_t*;

template <class M, auto f>
void unary_f32(In in, Out out) {
  Access<M>::put(out, f(Access<M>::f32(in, 0)));
}
template <class M, auto f>
void binary_f32(In in, Out out) {
  Access<M>::put(out, f(Access<M>::f32(in, 0), Access<M>::f32(in, 1)));
}
template <class M, auto f>
void unary_i32(In in, Out out) {
  Access<M>::put_i32(out, f(Access<M>::i32(in, 0)));
}
template <class M, auto f>
void binary_i32(In in, Out out) {
  Access<M>::put_i32(out, f(Access<M>::i32(in, 0), Access<M>::i32(in, 1)));
}
template <class M, auto f>
void unary_i16(In in, Out out) {
  Access<M>::put_i16(out, f(Access<M>::i16(in, 0)));
}
template <class M, auto f>
void binary_i16(In in, Out out) {
  Access<M>::put_i16(out, f(Access<M>::i16(in, 0), Access<M>::i16(in, 1)));
}

template <class M>
void add_memory(Vocabulary& v) {
  using A = Access<M>;
  using enum Domain;
  using enum Result;
  v.add({"load, store", kAllFloats, kExact, 1, 64, [](In in, Out out) { A::put(out, A::f32(in, 0)); }});
  v.add({"load_i32, store_i32", kBits, kExact, 1, 64, [](In in, Out out) { A::put_i32(out, A::i32(in, 0)); }});
  v.add({"load_i16, store_i16", kBits, kExact, 1, 64, [](In in, Out out) { A::put_i16(out, A::i16(in, 0)); }});
  v.add({"load_f16", kHalves, kExact, 1, 64, [](In in, Out out) { A::put(out, M::load_f16(A::words(in))); }});
  v.add({"load_bf16", kHalves, kExact, 1, 64, [](In in, Out out) { A::put(out, M::load_bf16(A::words(in))); }});
  v.add({"store_f16", kAllFloats, kExact, 1, 32, [](In in, Out out) { M::store_f16(A::words(out), A::f32(in, 0)); }});
  v.add({"store_bf16", kAllFloats, kExact, 1, 32, [](In in, Out out) { M::store_bf16(A::words(out), A::f32(in, 0)); }});
  v.add({"store_f16 near halves", kNearHalves, kExact, 1, 32,
         [](In in, Out out) { M::store_f16(A::words(out), A::f32(in, 0)); }});
  v.add({"store_bf16 near bf16", kNearBf16, kExact, 1, 32,
         [](In in, Out out) { M::store_bf16(A::words(out), A::f32(in, 0)); }});
  v.add({"store_words", kBits, kExact, 1, 32,
         [](In in, Out out) { M::store_words(reinterpret_cast<int16_t*>(out), A::i32(in, 0)); }});
  v.add({"store_words of small numbers", kSums, kExact, 1, 32,
         [](In in, Out out) { M::store_words(reinterpret_cast<int16_t*>(out), A::i32(in, 0)); }});
  v.add({"store_i8", kBits, kExact, 1, 16, [](In in, Out out) { M::store_i8(out, A::i32(in, 0)); }});
  v.add({"load_u8", kBits, kExact, 1, 64, [](In in, Out out) { A::put_i32(out, M::load_u8(in)); }});
}

template <class M>
void add_floats(Vocabulary& v) {
  using A = Access<M>;
  using enum Domain;
  using enum Result;
  v.add({"set", kAllFloats, kExact, 1, 64, [](In in, Out out) { A::put(out, M::set(A::scalar(in))); }});
  v.add({"zero", kFloats, kExact, 0, 64, [](In, Out out) { A::put(out, M::zero()); }});
  v.add({"add", kFloats, kFloat, 2, 64, binary_f32<M, M::add>});
  v.add({"sub", kFloats, kFloat, 2, 64, binary_f32<M, M::sub>});
  v.add({"mul", kFloats, kFloat, 2, 64, binary_f32<M, M::mul>});
  v.add({"div", kFloats, kFloat, 2, 64, binary_f32<M, M::div>});
  v.add({"mul_add", kFloats, kFloat, 3, 64,
         [](In in, Out out) { A::put(out, M::mul_add(A::f32(in, 0), A::f32(in, 1), A::f32(in, 2))); }});
  v.add({"max", kFloats, kExact, 2, 64, binary_f32<M, M::max>});
  v.add({"min", kFloats, kExact, 2, 64, binary_f32<M, M::min>});
  v.add({"abs", kAllFloats, kExact, 1, 64, unary_f32<M, M::abs>});
  v.add({"select_less", kAllFloats, kExact, 4, 64, [](In in, Out out) {
           A::put(out, M::select_less(A::f32(in, 0), A::f32(in, 1), A::f32(in, 2), A::f32(in, 3)));
         }});
  v.add(
      {"reduce_add", kFloats, kFloat, 1, 4, [](In in, Out out) { A::put_scalar(out, M::reduce_add(A::f32(in, 0))); }});
  v.add({"reduce_add16", kFloats, kFloat, 16, 64, [](In in, Out out) {
           typename M::F32 x[16];
           for (int i = 0; i < 16; ++i) x[i] = A::f32(in, i);
           A::put(out, M::reduce_add16(x));
         }});
  if constexpr (requires { &M::reduce_add4; })
    v.add({"reduce_add4", kFloats, kFloat, 4, 16, [](In in, Out out) {
             const typename M::F32 x[] = {A::f32(in, 0), A::f32(in, 1), A::f32(in, 2), A::f32(in, 3)};
             M::reduce_add4(x, reinterpret_cast<float*>(out));
           }});
  v.add(
      {"reduce_max", kFloats, kValue, 1, 4, [](In in, Out out) { A::put_scalar(out, M::reduce_max(A::f32(in, 0))); }});
  v.add({"reduce_max16", kFloats, kValue, 16, 64, [](In in, Out out) {
           typename M::F32 x[16];
           for (int i = 0; i < 16; ++i) x[i] = A::f32(in, i);
           A::put(out, M::reduce_max16(x));
         }});
  v.add({"exp2", kExp2, kExact, 1, 64, unary_f32<M, M::exp2>});
  v.add({"to_i32", kToI32, kExact, 1, 64, [](In in, Out out) { A::put_i32(out, M::to_i32(A::f32(in, 0))); }});
  v.add({"to_f32", kBits, kExact, 1, 64, [](In in, Out out) { A::put(out, M::to_f32(A::i32(in, 0))); }});
  v.add({"as_f32", kBits, kExact, 1, 64, [](In in, Out out) { A::put(out, M::as_f32(A::i32(in, 0))); }});
  v.add({"as_i32", kBits, kExact, 1, 64, [](In in, Out out) { A::put_i32(out, M::as_i32(A::f32(in, 0))); }});
}

template <class M>
void add_bf16_products(Vocabulary& v) {
  using A = Access<M>;
  using enum Domain;
  using enum Result;
  v.add({"store_bf16_exact", kBf16Exact, kExact, 2, 64,
         [](In in, Out out) { M::store_bf16_exact(A::words(out), A::f32(in, 0), A::f32(in, 1)); }});
  v.add({"dot2", kBf16Pairs, kNear, 3, 64,
         [](In in, Out out) { A::put(out, M::dot2(A::f32(in, 0), A::i32(in, 1), A::i32(in, 2))); }});
}

template <class M>
void add_integers(Vocabulary& v) {
  using A = Access<M>;
  using enum Domain;
  using enum Result;
  v.add({"set_i32", kBits, kExact, 1, 64, [](In in, Out out) { A::put_i32(out, M::set_i32(A::scalar_i32(in))); }});
  v.add({"add_i32", kBits, kExact, 2, 64, binary_i32<M, M::add_i32>});
  v.add({"sub_i32", kBits, kExact, 2, 64, binary_i32<M, M::sub_i32>});
  v.add({"max_i32", kBits, kExact, 2, 64, binary_i32<M, M::max_i32>});
  v.add({"and_i32", kBits, kExact, 2, 64, binary_i32<M, M::and_i32>});
  v.add({"or_i32", kBits, kExact, 2, 64, binary_i32<M, M::or_i32>});
  v.add({"min_u8", kBits, kExact, 2, 64, binary_i32<M, M::min_u8>});
  v.add({"shift_left<1>", kBits, kExact, 1, 64, unary_i32<M, M::template shift_left<1>>});
  v.add({"shift_left<23>", kBits, kExact, 1, 64, unary_i32<M, M::template shift_left<23>>});
  v.add({"shift_right<4>", kBits, kExact, 1, 64, unary_i32<M, M::template shift_right<4>>});
  v.add({"shift_right<31>", kBits, kExact, 1, 64, unary_i32<M, M::template shift_right<31>>});
  v.add({"reduce_add_i32", kSums, kExact, 1, 4,
         [](In in, Out out) { A::put_scalar_i32(out, M::reduce_add_i32(A::i32(in, 0))); }});
  v.add({"reduce_max_i32", kBits, kExact, 1, 4,
         [](In in, Out out) { A::put_scalar_i32(out, M::reduce_max_i32(A::i32(in, 0))); }});
  v.add({"transpose16", kBits, kExact, 16, 1024, [](In in, Out out) {
           typename M::I32 x[16];
           for (int i = 0; i < 16; ++i) x[i] = A::i32(in, i);
           M::transpose16(x);
           for (int i = 0; i < 16; ++i) A::put_i32(out + kVectorBytes * i, x[i]);
         }});
}

template <class M>
void add_words(Vocabulary& v) {
  using A = Access<M>;
  using enum Domain;
  using enum Result;
  v.add({"set_i16", kBits, kExact, 1, 64,
         [](In in, Out out) { A::put_i16(out, M::set_i16(static_cast<int16_t>(*A::words(in)))); }});
  v.add({"add_i16", kBits, kExact, 2, 64, binary_i16<M, M::add_i16>});
  v.add({"sub_i16", kBits, kExact, 2, 64, binary_i16<M, M::sub_i16>});
  v.add({"max_i16", kBits, kExact, 2, 64, binary_i16<M, M::max_i16>});
  v.add({"reduce_max_i16", kBits, kExact, 1, 4,
         [](In in, Out out) { A::put_scalar_i32(out, M::reduce_max_i16(A::i16(in, 0))); }});
  v.add({"sum_pairs_u16", kBits, kExact, 1, 64,
         [](In in, Out out) { A::put_i32(out, M::sum_pairs_u16(A::i16(in, 0))); }});
}

// What sets with wide registers narrow scores and probabilities with, and their products of bytes.
template <class M>
void add_wide(Vocabulary& v) {
  using A = Access<M>;
  using enum Domain;
  using enum Result;
  v.add({"dot4", kSums, kExact, 3, 64,
         [](In in, Out out) { A::put_i32(out, M::dot4(A::i32(in, 0), A::i32(in, 1), A::i32(in, 2))); }});
  v.add({"shift_right_i16<3>", kBits, kExact, 1, 64, unary_i16<M, M::template shift_right_i16<3>>});
  v.add({"shift_right_i16<8>", kBits, kExact, 1, 64, unary_i16<M, M::template shift_right_i16<8>>});
  v.add({"round_shift_i16", kBits, kExact, 1, 64, [](In in, Out out) {
           A::put_i16(out, M::template round_shift_i16<5>(M::template shift_right_i16<1>(A::i16(in, 0))));
         }});
  v.add({"interleave_quarters", kAllFloats, kExact, 2, 128, [](In in, Out out) {
           typename M::F32 x = A::f32(in, 0), y = A::f32(in, 1);
           M::interleave_quarters(x, y);
           A::put(out, x), A::put(out + kVectorBytes, y);
         }});
  v.add({"pack_i16", kBits, kExact, 2, 64,
         [](In in, Out out) { A::put_i16(out, M::pack_i16(A::i32(in, 0), A::i32(in, 1))); }});
  v.add({"pack_i16 of small numbers", kSums, kExact, 2, 64, [](In in, Out out) {
           A::put_i16(out, M::pack_i16(M::template shift_right<16>(A::i32(in, 1)), M::load_u8(in)));
         }});
  v.add({"store_u8", kBits, kExact, 2, 64, [](In in, Out out) { M::store_u8(out, A::i16(in, 0), A::i16(in, 1)); }});
  v.add({"store_u8 of small numbers", kBits, kExact, 2, 64, [](In in, Out out) {
           M::store_u8(out, M::template shift_right_i16<7>(A::i16(in, 0)),
                       M::template shift_right_i16<8>(A::i16(in, 1)));
         }});
  v.add({"exp2_i16", kExponents, kExact, 1, 64, unary_i16<M, M::exp2_i16>});
}

// The same of sets whose registers hold a quarter.
template <class M>
void add_quarters(Vocabulary& v) {
  using A = Access<M>;
  using enum Domain;
  using enum Result;
  v.add({"exp2_eighths", kExponents, kExact, 1, 64,
         [](In in, Out out) { A::put_i16(out, M::exp2_eighths(M::sub_i16(M::set_i16(-128), A::i16(in, 0)))); }});
  v.add({"store_u8_rounded", kExponents, kExact, 2, 64,
         [](In in, Out out) { M::template store_u8_rounded<2>(out, A::i16(in, 0), A::i16(in, 1)); }});
  v.add({"store_u8_rounded_apart", kExponents, kExact, 2, 120,
         [](In in, Out out) { M::template store_u8_rounded_apart<2>(out, A::i16(in, 0), A::i16(in, 1)); }});
  v.add({"small_sums, to_f32_small", kBits, kExact, 1, 64, [](In in, Out out) {
           A::put(out, M::to_f32_small(M::add_i32(M::small_sums(), M::template shift_right<10>(A::i32(in, 0)))));
         }});
  v.add({"small_sums, to_f32_small of negative numbers", kBits, kExact, 1, 64, [](In in, Out out) {
           A::put(out, M::to_f32_small(M::sub_i32(M::small_sums(), M::template shift_right<10>(A::i32(in, 0)))));
         }});
  v.add({"store_small_words", kSmall, kExact, 1, 32,
         [](In in, Out out) { M::store_small_words(reinterpret_cast<int16_t*>(out), A::f32(in, 0)); }});
}

// What turns tiles of scores into a tile of probabilities.
template <class M>
void add_tile_words(Vocabulary& v) {
  using A = Access<M>;
  using enum Domain;
  using enum Result;
  v.add({"as_i16, as_words", kBits, kExact, 1, 64,
         [](In in, Out out) { A::put_i32(out, M::as_words(M::as_i16(A::i32(in, 0)))); }});
  v.add({"join_words", kBits, kExact, 2, 64,
         [](In in, Out out) { A::put_i16(out, M::join_words(A::i32(in, 0), A::i32(in, 1))); }});
  v.add({"join_high_words", kBits, kExact, 2, 64,
         [](In in, Out out) { A::put_i16(out, M::join_high_words(A::i32(in, 0), A::i32(in, 1))); }});
  v.add({"max_u16", kBits, kExact, 2, 64, binary_i16<M, M::max_u16>});
  v.add({"bf16_of_words", kBits, kExact, 1, 64, unary_i16<M, M::bf16_of_words>});
  v.add({"sub_u16", kBits, kExact, 2, 64, binary_i16<M, M::sub_u16>});
  v.add({"join_codes", kBits, kExact, 2, 64,
         [](In in, Out out) { A::put_i32(out, M::join_codes(A::i16(in, 0), A::i16(in, 1))); }});
  v.add({"exp2_codes", kBits, kExact, 1, 64, unary_i32<M, M::exp2_codes>});
}

// `multiply` on the tiles C, A, B of `in`, in registers that differ from call to call.
template <class M, int C, int A, int B, class F>
void run_product(In in, Out out, F multiply) {
  M::tile_config();
  M::template tile_load<C>(in, kVectorBytes);
  M::template tile_load<A>(in + 16 * kVectorBytes, kVectorBytes);
  M::template tile_load_once<B>(in + 32 * kVectorBytes, kVectorBytes);
  multiply();
  M::template tile_store<C>(out, kVectorBytes);
  M::tile_release();
}

template <class M, int... T>
void run_registers(In in, Out out) {
  M::tile_config();
  (M::template tile_load<T>(in + 16 * kVectorBytes * T, kVectorBytes), ...);
  M::template tile_zero<3>();
  M::template tile_load<6>(in + 5, 0);
  (M::template tile_store<T>(out + kVectorBytes * T, 8 * kVectorBytes), ...);  // rows of the eight tiles interleaved
  M::tile_release();
}

template <class M>
void add_tiles(Vocabulary& v) {
  using enum Domain;
  using enum Result;
  v.add({"tile_load, tile_zero, tile_store", kBits, kExact, 128, 8192, run_registers<M, 0, 1, 2, 3, 4, 5, 6, 7>});
  v.add({"tile_dot4_ss", kSums, kExact, 48, 1024,
         [](In in, Out out) { run_product<M, 4, 0, 3>(in, out, [] { M::template tile_dot4_ss<4, 0, 3>(); }); }});
  v.add({"tile_dot4_su", kSums, kExact, 48, 1024,
         [](In in, Out out) { run_product<M, 7, 2, 1>(in, out, [] { M::template tile_dot4_su<7, 2, 1>(); }); }});
  v.add({"tile_dot2", kBf16Pairs, kNear, 48, 1024,
         [](In in, Out out) { run_product<M, 5, 6, 0>(in, out, [] { M::template tile_dot2<5, 6, 0>(); }); }});
}

// What only sets without a dot product of bytes need; `scalar` has it as the specification.
template <class M>
void add_bytes_as_words(Vocabulary& v) {
  using A = Access<M>;
  using enum Domain;
  using enum Result;
  v.add({"dot2_i16", kSums, kExact, 3, 64,
         [](In in, Out out) { A::put_i32(out, M::dot2_i16(A::i32(in, 0), A::i32(in, 1), A::i32(in, 2))); }});
}

// Four steps of a row in a register, and products that take one of them.
template <class M>
void add_lanes(Vocabulary& v) {
  using A = Access<M>;
  using enum Domain;
  using enum Result;
  v.add({"dot4_ss", kSums, kExact, 3, 64,
         [](In in, Out out) { A::put_i32(out, M::dot4_ss(A::i32(in, 0), A::i32(in, 1), A::i32(in, 2))); }});
  v.add({"dot4_uu", kSums, kExact, 3, 64,
         [](In in, Out out) { A::put_i32(out, M::dot4_uu(A::i32(in, 0), A::i32(in, 1), A::i32(in, 2))); }});
  v.add({"mul_add_lane", kFloats, kFloat, 3, 64, [](In in, Out out) {
           A::put(out, M::template mul_add_lane<1>(A::f32(in, 1), A::quad(in, 2), A::f32(in, 0)));
         }});
  v.add({"dot4_ss_lane", kSums, kExact, 3, 64, [](In in, Out out) {
           A::put_i32(out, M::template dot4_ss_lane<2>(A::i32(in, 0), A::i32(in, 1), A::quad(in, 2)));
         }});
  v.add({"dot4_uu_lane", kSums, kExact, 3, 64, [](In in, Out out) {
           A::put_i32(out, M::template dot4_uu_lane<3>(A::i32(in, 0), A::i32(in, 1), A::quad(in, 2)));
         }});
}

// Products of pairs of rows.
template <class M>
void add_pairs(Vocabulary& v) {
  using A = Access<M>;
  using enum Domain;
  using enum Result;
  v.add({"interleave", kBits, kExact, 2, 128, [](In in, Out out) {
           typename M::I32 x = A::i32(in, 0), y = A::i32(in, 1);
           M::interleave(x, y);
           A::put_i32(out, x), A::put_i32(out + kVectorBytes, y);
         }});
  v.add({"split_rows", kBits, kExact, 2, 128, [](In in, Out out) {
           typename M::I32 x = A::i32(in, 0), y = A::i32(in, 1);
           M::split_rows(x, y);
           A::put_i32(out, x), A::put_i32(out + kVectorBytes, y);
         }});
  v.add({"split_rows of floats", kAllFloats, kExact, 2, 128, [](In in, Out out) {
           typename M::F32 x = A::f32(in, 0), y = A::f32(in, 1);
           M::split_rows(x, y);
           A::put(out, x), A::put(out + kVectorBytes, y);
         }});
  v.add({"store_bf16_exact_apart", kBf16Exact, kExact, 2, 120,
         [](In in, Out out) { M::store_bf16_exact_apart(A::words(out), A::f32(in, 0), A::f32(in, 1)); }});
  v.add({"dot8_ss", kSums, kExact, 3, 64,
         [](In in, Out out) { A::put_i32(out, M::dot8_ss(A::i32(in, 0), A::quad(in, 1), A::i32(in, 2))); }});
  v.add({"dot8_us", kSums, kExact, 3, 64,
         [](In in, Out out) { A::put_i32(out, M::dot8_us(A::i32(in, 0), A::quad(in, 1), A::i32(in, 2))); }});
}

template <class M>
Vocabulary make_vocabulary() {
  Vocabulary v{};
  v.name = M::kName;
  add_memory<M>(v);
  add_floats<M>(v);
  add_integers<M>(v);
  add_words<M>(v);
  if constexpr (M::kHasDot2) add_bf16_products<M>(v);
  if constexpr (requires { &M::pack_i16; }) add_wide<M>(v);
  if constexpr (requires { &M::exp2_eighths; }) add_quarters<M>(v);
  if constexpr (requires { &M::dot2_i16; }) add_bytes_as_words<M>(v);
  if constexpr (requires { typename M::Quad; }) add_lanes<M>(v);
  if constexpr (requires { &M::dot8_ss; }) add_pairs<M>(v);
  if constexpr (M::kHasTiles) add_tiles<M>(v), add_tile_words<M>(v);
  return v;
}

}  // namespace clary::test
