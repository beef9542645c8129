// P in e4m3 from integer scores, partly without the special function unit: an SM makes 16 exponentials per clock, and
// at head dim 64 that is half of what its tensor cores ask for.
//
// Two numbers at a time, in f16. The bits of an f16 number, read as an integer, are 1024 (15 + log2 x) but for the
// mantissa, taken as linear: up to 6 % too large. The mean of that for y and for y + 1/2, divided by sqrt 2, is
// within 0.8 % of a multiple of 2^y; with the multiple that has no bias, 1.1 % below to 0.7 % above 2^y, 0.45 % rms
// (e4m3 itself rounds by 2.6 % rms):
//
//     u = 1024 (15 + y)      2^y = f16(u) + f16(u + 512) / sqrt 2
//
// 2^-j u is the high word of an integer product (IMAD.HI), and two of them are packed with saturation (I2IP): what is
// too small becomes 0. j is 0 unless scores are so large that the factor of the product would overflow; then one unit
// of the score is more than 2^-11 octaves, and the 2^(j - 10) octaves that are resolved are at most 8 units, far
// below the rounding of Q and K. Where a unit is more than half an octave it counts as half of one: what lies up to 40
// units below the maximum still counts, and rounding Q and K moves a score by more.
//
// Per score 4 issue slots as by MUFU, on other units: IMAD.HI and two halves of IMAD there; I2FP, FFMA, MUFU here. So
// kSpecial of each kTiles / 2 blocks of 16 keys go the ordinary way.
#pragma once

#include "cuda/attention/softmax.h"

namespace clary::cuda {

template <class M, int kTiles, int kSpecial>
struct PackedExp2 {
  static constexpr int kBlocks = kTiles / 2;
  static_assert(kSpecial >= 0 && kSpecial <= kBlocks);
  // P of 16 keys and one row before it is rounded to e4m3: four f32, or two pairs of f16.
  using Raised = uint32_t[kBlocks][2][4];

  // Spread evenly, so that neighbouring instructions want different units.
  static CLARY_ANYWHERE bool is_special(int block) {
    return (block + 1) * kSpecial / kBlocks != block * kSpecial / kBlocks;
  }

  // Raw scores -> P, every key visible. The sum of a row is not made here: it comes with P V (ones beside V).
  static CLARY_DEVICE void raise(const int (&s)[kTiles][4], const float (&scale)[2], RowState& row, float (&alpha)[2],
                                 Raised& p) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int most = Softmax<M, Element::e4m3, kTiles>::maximum_of_row(s, r);
      const float largest = M::to_float(most) * scale[r];
      const float shift = rescale<M, Element::e4m3>(row, r, largest, alpha);
      // A query that is not finite has the scale NaN, which integers do not carry on.
      if (kSpecial < kBlocks) alpha[r] = M::fma(scale[r], 0, alpha[r]);
      const Line line(most, scale[r], largest + shift);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const int a = s[2 * block][2 * r], b = s[2 * block][2 * r + 1];
        const int c = s[2 * block + 1][2 * r], d = s[2 * block + 1][2 * r + 1];
        uint32_t(&to)[4] = p[block][r];
        if (is_special(block)) {
          to[0] = special(a, scale[r], shift), to[1] = special(b, scale[r], shift);
          to[2] = special(c, scale[r], shift), to[3] = special(d, scale[r], shift);
        } else {
          to[0] = line.pair(a, b), to[1] = line.pair(c, d);
        }
      }
    }
  }

  // A operands (layout/fragments.h): register r of a step holds row r % 2 of the block 2 step + r / 2.
  template <int kSteps>
  static CLARY_DEVICE void pack(const Raised& x, uint32_t (&p)[kSteps][4]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int block = 2 * step + (r >> 1);
        const uint32_t(&from)[4] = x[block][r & 1];
        p[step][r] = is_special(block) ? M::e4m3x4(M::from_bits(from[0]), M::from_bits(from[1]), M::from_bits(from[2]),
                                                   M::from_bits(from[3]))
                                       : M::e4m3x4_of_f16(from[0], from[1]);
      }
  }

 private:
  static CLARY_DEVICE uint32_t special(int s, float scale, float shift) {
    return M::bits(M::exp2(M::fma(M::to_float(s), scale, shift)));
  }

  // u of a row, as a function of its raw scores.
  struct Line {
    int factor;
    int64_t offset;
    uint32_t coarse;  // 2^j
    // The score `most` has y = top. Starting there keeps the rounding of `factor` away from the largest P.
    CLARY_DEVICE Line(int most, float scale, float top) {
      // scale < 2^(e - 126), e being its exponent as it is stored; the factor scale 2^(42 - j) must stay below 2^31.
      // At j = 10 a unit of the score is half an octave: beyond that it makes no difference any more.
      constexpr int kFits = 115, kMost = 10;
      const int e = static_cast<int>(M::bits(scale) >> 23) - kFits;
      const int j = e < 0 ? 0 : e > kMost ? kMost : e;
      const float fine = M::from_bits(static_cast<uint32_t>(127 + 42 - j) << 23);
      coarse = 1u << j;
      factor = M::to_int(-M::maximum(-scale * fine, -2147483520.0f));
      // 2^-20 below the range of an int, so that sums stay in it; such a P is 0.
      const float at_top = M::maximum((top + kZero) * (fine * 0x1p-32f), -0x1p30f);
      // Its low word might be anything. IMAD.HI wants a pair of registers here, and this one need not be made.
      const int high = M::to_int(at_top) - M::multiply_high(most, factor, factor);
      offset = static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | static_cast<uint32_t>(factor));
    }
    // Two P as f16.
    CLARY_DEVICE uint32_t pair(int a, int b) const {
      const uint32_t u = M::pack_u16(M::multiply_high(a, factor, offset), M::multiply_high(b, factor, offset));
      return M::fma_f16x2(u * coarse + 0x02000200u, kRootHalf, u * coarse);
    }
    static constexpr uint32_t kRootHalf = 0x39a839a8u;  // 0.70703 twice
    // The exponent's bias, less the log2 of what the two terms come to on average, 2.0806.
    static constexpr float kZero = 15 - 1.05697f;
  };
};

}  // namespace clary::cuda
