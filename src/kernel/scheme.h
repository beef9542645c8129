// A precision as the kernels see it: element types of the two products, and with them everything else.
#pragma once

#include <type_traits>
#include <utility>

#include "kernel/args.h"

namespace clary {

// i8w: INT8 codes as 16-bit words, for sets that have no dot product of bytes: widened once, when they are packed.
// i8t: INT8 values of the matrix engine, whose softmax has words of its own (kernel/tiles/layout.h).
// bf16x2: f32 as the sum of two bf16, whose products are three: what the two low halves would give is left out. On the
// matrix engine alone.
enum class Element : uint8_t { f32, bf16, i8, i4, i8w, i8t, bf16x2 };

template <Element QK, Element PV>
struct Scheme {
  static constexpr Element kQk = QK, kPv = PV;
  static constexpr bool kIntegerQk = QK == Element::i8 || QK == Element::i4 || QK == Element::i8w;
  static constexpr bool kSplit = QK == Element::bf16x2;
  // Values have a scale per channel and block, and P are bytes.
  static constexpr bool kIntegerPv = PV == Element::i8 || PV == Element::i8w || PV == Element::i8t;
  // Softmax in 16-bit fixed point, 1/64 octave per unit; otherwise f32 and one octave per unit.
  static constexpr bool kFixedPoint = PV == Element::i8 || PV == Element::i8w;
  // 1/64 octave: +-512 octaves in 16 bits, and 64 table entries fit two registers.
  static constexpr float kUnitsPerOctave = kFixedPoint ? 64.0f : 1.0f;
  // What is subtracted before quantising, and restored by exact algebra.
  static constexpr bool kSmoothKeys = kIntegerQk, kCentreValues = PV != Element::f32 && kIntegerQk;
};

// Which schemes run on the matrix engine of a set that has one.
template <class V, class S>
inline constexpr bool kUsesTiles = V::kHasTiles&& S::kQk != Element::f32;
// Whether the softmax runs beside products (kernel/pipeline.h): accumulators and its temporaries need registers at once
// (21 + 7 of 32).
template <class V, class S>
inline constexpr bool kUsesPipeline = V::kOverlaps && (S::kFixedPoint || S::kPv == Element::bf16);
// INT8 keys are signed bytes; otherwise they have +128 and Queries knows what that adds to a score.
template <class V, class S>
inline constexpr bool kSignedKeys = V::kSignedKeys || kUsesTiles<V, S>;

using ExactScheme = Scheme<Element::f32, Element::f32>;
// Where no instruction multiplies bf16, f32 is both exact and faster than taking pairs apart.
template <class V>
inline constexpr Element k16Bit = V::kHasDot2 ? Element::bf16 : Element::f32;
template <class V>
using Bf16Scheme = Scheme<k16Bit<V>, k16Bit<V>>;
// Elsewhere three products and what they wait for are more than one of f32.
template <class V>
using Bf16x3Scheme = std::conditional_t<V::kHasTiles, Scheme<Element::bf16x2, Element::bf16x2>, ExactScheme>;
template <class V>
inline constexpr Element kInt8 = V::kBytesAsWords ? Element::i8w : Element::i8;
template <class V>
using Int8F16Scheme = Scheme<kInt8<V>, k16Bit<V>>;
template <class V>
using Int8Scheme = Scheme<kInt8<V>, V::kHasTiles ? Element::i8t : kInt8<V>>;
// The matrix engine multiplies P V of INT4 keys in bf16: what bytes would save is little beside what the keys cost.
template <class V>
using Int4Scheme = Scheme<Element::i4, V::kHasTiles ? Element::bf16 : kInt8<V>>;
// Values per key up to which the matrix engine computes int8 with bf16 values, as int8_f16: there bytes gain 6 % and
// cost half as much error again; at 128 they gain 15 % (docs/performance.md).
inline constexpr int kFewValues = 64;
template <class V>
constexpr bool int8_has_bf16_values(int64_t dim_v) {
  return V::kHasTiles && dim_v <= kFewValues;
}

// Products of two rows by two steps at once: packed vectors of steps 2 t and 2 t + 1 are interleaved (V::interleave),
// steps come in fours, and rows 2 p and 2 p + 1 lie in turns, two steps of each.
template <class V, Element E>
inline constexpr bool kInPairs = V::kPairs && (E == Element::bf16 || E == Element::i8 || E == Element::i4);

inline constexpr float kLog2e = 1.44269504f;  // octaves per nat

constexpr int elements_per_step(Element e) {
  return e == Element::f32 || e == Element::bf16x2 ? 1 : e == Element::bf16 || e == Element::i8w ? 2 : 4;
}

// Position of key `i` of a panel among the packed lanes (vector * 16 + lane). Fixed-point schemes interleave the two
// vectors of 32 keys by quads, so that packing 32 -> 16 bits inside quarters leaves scores in the order of the keys:
//   vector j of 0 and 1, lane 4 L + i  =  key 8 L + 4 j + i
template <class V, class S>
inline constexpr bool kByQuads = S::kFixedPoint && !V::kQuarters;
template <class V, class S>
constexpr int packed_position(int key) {
  if (!kByQuads<V, S>) return key;
  const int half = key / 32, quarter = key % 32 / 8, vector = key / 4 % 2, lane = key % 4;
  return (2 * half + vector) * 16 + quarter * 4 + lane;
}

// Channels are multiplied in groups of up to 4 vectors.
inline constexpr int kGroupChannels = 64;

// A count that is known when it is compiled, or else (0) the one at run time: integral_constant or int.
template <int Known>
[[gnu::always_inline]] inline auto known_or(int count) {
  if constexpr (Known > 0) {
    return std::integral_constant<int, Known>();
  } else {
    return count;
  }
}

// Compile-time loop: body(std::integral_constant<int, 0>), ...
template <int... I, class F>
[[gnu::always_inline]] inline void unroll_sequence(F&& body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
[[gnu::always_inline]] inline void unroll(F&& body) {
  unroll_sequence(body, std::make_integer_sequence<int, N>());
}

}  // namespace clary
