// Exponentials by integer arithmetic (src/cuda/attention/packed_exp2.h): every input they can get, against exp2.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/attention/packed_exp2.h"
#include "cuda/emulator/machine.h"

namespace clary::emulated {
namespace {

constexpr int kTiles = 16;                            // 8 keys each
constexpr int kPerRow = 2 * kTiles;                   // scores of one row that a lane has
constexpr double kBiggest = 448, kNothing = 0x1p-10;  // of e4m3; at most kNothing rounds to 0

// Of P / 2^y.
struct Worst {
  double least = 1, largest = 1;
  double small = 0;  // P where 2^y is less than half of kNothing
  double squares = 0;
  int64_t count = 0;

  void add(double ratio) {
    least = std::min(least, ratio), largest = std::isnan(ratio) ? INFINITY : std::max(largest, ratio);
    squares += (ratio - 1) * (ratio - 1), ++count;
  }
  // Half of what lies between the largest ratio and the least: how far P is from a multiple of 2^y.
  double spread() const { return (largest - least) / (largest + least); }
  double rms() const { return std::sqrt(squares / static_cast<double>(count)); }
};

// P of scores most, most - 1, ... down to where P vanishes. `scale`: octaves per unit. `slack`: units of the score by
// which an input may be off.
template <class M>
Worst measure(float scale, int most, double slack = 0) {
  using Packed = cuda::PackedExp2<M, kTiles, 0>;
  const int64_t units = std::min<int64_t>(static_cast<int64_t>(30 / scale) + 2, int64_t{most} + 1032256);
  Worst worst;
  // Each turn has its own scores below the row's maximum, which only the running state holds.
  for (int64_t first = 0; first < units; first += 16 * 4 * kPerRow)
    launch({1, 1, 1}, 32, 0, [&] {
      int s[kTiles][4];
      const int lane = Machine::thread();
      const auto below = [&](int n, int i) {
        const int64_t index = first + (lane * 4 + i) * kTiles + n;
        return static_cast<int>(std::min(index, units - 1));
      };
      for (int n = 0; n < kTiles; ++n)
        for (int i = 0; i < 4; ++i) s[n][i] = most - below(n, i);
      const float scales[2] = {scale, scale}, top = static_cast<float>(most) * scale;
      cuda::RowState row{{top, top}, {0, 0}};
      float alpha[2];
      typename Packed::Raised p;
      Packed::raise(s, scales, row, alpha, p);
      for (int n = 0; n < kTiles; ++n)
        for (int i = 0; i < 4; ++i) {
          const uint32_t pair = p[n / 2][i / 2][n % 2];
          const double got = support::float_from_f16(static_cast<uint16_t>(pair >> 16 * (i % 2)));
          const double octaves = -static_cast<double>(below(n, i)) * static_cast<double>(scale), off = slack * scale;
          const double least = kBiggest * std::exp2(octaves - off), largest = kBiggest * std::exp2(octaves + off);
          if (largest < kNothing / 2) {
            worst.small = std::isnan(got) ? INFINITY : std::max(worst.small, std::abs(got));
            continue;
          }
          worst.add(got < least ? got / least : got / std::min(largest, std::max(got, least)));
        }
    });
  return worst;
}

// 0.75 % by the two terms; besides, 2^-11 of an octave in u and three roundings to f16. The spread is of P to the
// nearest multiple of 2^y, the others are of P to 2^y itself.
constexpr double kSpread = 0.0085, kLeast = 0.989, kLargest = 1.007, kRms = 0.0048;

bool is_within(const Worst& worst) {
  return worst.spread() <= kSpread && worst.least >= kLeast && worst.largest <= kLargest && worst.small <= kNothing;
}

// A unit of 2^-12 octaves goes through every u there is; larger ones have rounding of their own.
TEST(CudaPackedExp2, IsWithinItsBoundForEveryInput) {
  for (const float scale : {0x1p-12f, 1.9e-4f, 2.3e-4f, 0x1.fffp-12f, 3e-4f})
    for (const int most : {1032256, 8064, 0, -5000}) {
      const Worst worst = measure<Machine>(scale, most);
      EXPECT_TRUE(is_within(worst)) << scale << ' ' << most << ": " << worst.least << " to " << worst.largest << ", "
                                    << worst.small;
      EXPECT_LE(worst.rms(), kRms) << scale << ' ' << most;
      EXPECT_GT(worst.count, 1000);
    }
}

// Large scores: u is resolved less finely, but never by more than 8 units of the score, until a unit is half an octave;
// from there on, all of the 40 units below the maximum may count.
TEST(CudaPackedExp2, ResolvesLargeScores) {
  for (float scale = 0x1p-11f; scale < 64; scale *= 1.37f)
    for (const int most : {1032256, 8064, 0, -5000}) {
      const Worst worst = measure<Machine>(scale, most, scale < 0.5f ? 8 : 40);
      EXPECT_TRUE(is_within(worst)) << scale << ' ' << most << ": " << worst.least << " to " << worst.largest << ", "
                                    << worst.small;
    }
}

// ---- planted faults: each must leave the bound ----------------------------------------------------------------------

struct OneTerm : Machine {  // the straight line alone: up to 6 % off
  static uint32_t fma_f16x2(uint32_t, uint32_t, uint32_t c) { return c; }
};
struct OtherRoot : Machine {  // 0.6875 for the root of a half
  static uint32_t fma_f16x2(uint32_t a, uint32_t, uint32_t c) { return Machine::fma_f16x2(a, 0x39803980u, c); }
};
struct CoarseFactor : Machine {  // the slope has 7 bits
  static int multiply_high(int a, int b, int64_t c) { return Machine::multiply_high(a, b & ~0xffffff, c); }
};
struct Unsaturated : Machine {
  static uint32_t pack_u16(int a, int b) {
    return (static_cast<uint32_t>(a) & 0xffff) | static_cast<uint32_t>(b) << 16;
  }
};

template <class M>
bool leaves_the_bound() {
  const Worst worst = measure<M>(1.9e-4f, 8064);
  return !is_within(worst) || worst.rms() > kRms;
}

TEST(CudaPackedExp2, PlantedFaultsAreSeen) {
  EXPECT_FALSE(leaves_the_bound<Machine>());
  EXPECT_TRUE(leaves_the_bound<OneTerm>());
  EXPECT_TRUE(leaves_the_bound<OtherRoot>());
  EXPECT_TRUE(leaves_the_bound<CoarseFactor>());
  EXPECT_TRUE(leaves_the_bound<Unsaturated>());
}

}  // namespace
}  // namespace clary::emulated
