// The emulator itself: what it computes, and that it ends a program which a GPU would not define.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cuda/emulator/block.h"
#include "cuda/emulator/machine.h"

namespace clary::emulated {
namespace {

TEST(CudaEmulator, RoundsToE4m3) {
  for (int code = 0; code < 256; ++code) {
    const float value = float_from_e4m3(static_cast<uint8_t>(code));
    if (std::isnan(value)) continue;
    EXPECT_EQ(e4m3_from_float(value), code) << value;
  }
  EXPECT_EQ(float_from_e4m3(e4m3_from_float(1e9f)), 448);
  EXPECT_EQ(float_from_e4m3(e4m3_from_float(17)), 16);  // to the nearest even of 16 and 18
  EXPECT_EQ(float_from_e4m3(e4m3_from_float(19)), 20);
  EXPECT_EQ(float_from_e4m3(e4m3_from_float(0x1p-10f)), 0);  // half of the smallest number
  EXPECT_TRUE(std::isnan(float_from_e4m3(e4m3_from_float(NAN))));
}

TEST(CudaEmulator, MultipliesBytes) {
  int8_t a[16][32], b[8][32];
  for (int i = 0; i < 16 * 32; ++i) a[i / 32][i % 32] = static_cast<int8_t>(i * 37 % 255 - 127);
  for (int i = 0; i < 8 * 32; ++i) b[i / 32][i % 32] = static_cast<int8_t>(i * 91 % 253 - 126);
  int got[16][8];
  launch({1, 1, 1}, 32, 0, [&] {
    const int g = Machine::thread() / 4, t = Machine::thread() % 4;
    uint32_t ra[4], rb[2];
    for (int r = 0; r < 4; ++r) std::memcpy(&ra[r], &a[g + 8 * (r % 2)][4 * t + 16 * (r / 2)], 4);
    for (int r = 0; r < 2; ++r) std::memcpy(&rb[r], &b[g][4 * t + 16 * r], 4);
    int d[4] = {1, 1, 1, 1};
    Machine::mma<Element::s8>(d, ra, rb[0], rb[1]);
    for (int i = 0; i < 4; ++i) got[g + 8 * (i / 2)][2 * t + i % 2] = d[i];
  });
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      int sum = 1;
      for (int k = 0; k < 32; ++k) sum += a[row][k] * b[column][k];
      EXPECT_EQ(got[row][column], sum);
    }
}

// What waits too little is seen: the copy has been done in some runs, and not in others.
TEST(CudaEmulator, CopiesComeWhenTheyAreWaitedFor) {
  alignas(16) uint32_t source[4] = {1, 2, 3, 4};
  int early = 0, late = 0;
  for (int run = 0; run < 100; ++run)
    launch({1, 1, 1}, 1, 64, [&] {
      Machine::copy_16(0, source);
      Machine::copy_commit();
      early += Machine::load_shared(0) == 1;
      Machine::copy_wait<0>();
      late += Machine::load_shared(0) == 1;
    });
  EXPECT_EQ(late, 100);
  EXPECT_GT(early, 10);
  EXPECT_LT(early, 90);
}

TEST(CudaEmulatorDeathTest, EndsWhatAGpuDoesNotDefine) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH(launch({1, 1, 1}, 32, 0,
                      [] {
                        if (Machine::thread() < 16) Machine::all(true);
                      }),
               "leaves while|needs 32 lanes|deadlock");
  EXPECT_DEATH(
      launch({1, 1, 1}, 32, 0, [] { Machine::thread() < 16 ? Machine::all(true) : Machine::shuffle_xor(1, 1) == 1; }),
      "while lanes of its warp are in");
  EXPECT_DEATH(launch({1, 1, 1}, 64, 0,
                      [] {
                        if (Machine::thread() < 32) Machine::sync();
                      }),
               "nobody brings|deadlock");
  EXPECT_DEATH(launch({1, 1, 1}, 1, 16, [] { Machine::store_shared(16, 0); }), "beyond 16");
  EXPECT_DEATH(launch({1, 1, 1}, 1, 16,
                      [] {
                        Machine::barrier_init(0, 1);
                        Machine::barrier_wait(0, 0);
                      }),
               "nobody brings|deadlock");
}

}  // namespace
}  // namespace clary::emulated
