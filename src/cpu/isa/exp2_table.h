// Constants of the two exponentials that all instruction sets share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace clary {

// 2^f = 1 + f (c0 + f (c1 + ...)) on [-1/2, 1/2]: Lawson-weighted least squares of the relative error, 9.2e-8 in
// exact arithmetic and 1.6e-7 in f32.
inline constexpr float kExp2Poly[5] = {0.6931470036506653f, 0.24022242426872253f, 0.05550733953714371f,
                                       0.009671518579125404f, 0.0013264723820611835f};

// x^(1 / 2^times) by square roots (Newton), in double: exact enough to round every entry of the tables correctly.
constexpr double repeated_root(double x, int times) {
  for (; times > 0; --times) {
    double r = x;
    for (int i = 0; i < 40; ++i) r = 0.5 * (r + x / r);
    x = r;
  }
  return x;
}

// round(65280 * 2^(-i/64)). 65280 = 255 * 256: the largest probability becomes 255 after the shift by 8 (3 + 5 with
// rounding), and 65280 + 4 still fits 16 bits.
struct Exp2Table {
  alignas(64) std::array<uint16_t, 64> v;
};

constexpr Exp2Table make_exp2_table() {
  Exp2Table table{};
  const double step = repeated_root(0.5, 6);
  double value = 65280;
  for (auto& entry : table.v) {
    entry = static_cast<uint16_t>(value + 0.5);
    value *= step;
  }
  return table;
}

inline constexpr Exp2Table kExp2Table = make_exp2_table();

// round(255 * 2^((i - 255)/28)), and 0 for code 0, which means "far below": 255 codes span 9.1 octaves, to the smallest
// number that rounds to 1. Rounded, not cut, so that sums are right on average.
struct ByteTable {
  alignas(64) std::array<uint8_t, 256> v;
};

constexpr ByteTable make_byte_table() {
  ByteTable table{};
  double step = 0.975;  // x^28 = 1/2 by Newton
  for (int i = 0; i < 40; ++i) {
    double power = 1;
    for (int k = 0; k < 27; ++k) power *= step;
    step -= (power * step - 0.5) / (28 * power);
  }
  double value = 255;
  for (int i = 255; i > 0; --i, value *= step) table.v[static_cast<std::size_t>(i)] = static_cast<uint8_t>(value + 0.5);
  return table;
}

inline constexpr ByteTable kByteTable = make_byte_table();

// By how much a linear mantissa exceeds that of 2^x, in 1/128, for two neighbours each: entry i is
// l - 128 (2^(l/128) - 1), rounded, at l = 2 i + 1/2, between the two.
struct MantissaTable {
  alignas(64) std::array<uint8_t, 64> v;
};

constexpr MantissaTable make_mantissa_table() {
  MantissaTable table{};
  const double step = repeated_root(2, 6);
  double value = repeated_root(2, 8);
  for (std::size_t i = 0; i < table.v.size(); ++i, value *= step)
    table.v[i] = static_cast<uint8_t>(2 * static_cast<double>(i) + 0.5 - 128 * (value - 1) + 0.5);
  return table;
}

inline constexpr MantissaTable kMantissaTable = make_mantissa_table();

}  // namespace clary
