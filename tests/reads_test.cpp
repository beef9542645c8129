// The plain sum that decode is compared with reads every word once.
#include "support/reads.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

namespace clary::support {
namespace {

TEST(Reads, SumsEveryWordOnce) {
  std::vector<uint64_t> a(10007), b(3);
  std::iota(a.begin(), a.end(), uint64_t{1} << 40);
  b = {~uint64_t{0}, 5, 1};  // wraps around
  const uint64_t expected =
      std::accumulate(a.begin(), a.end(), uint64_t{0}) + std::accumulate(b.begin(), b.end(), uint64_t{0});
  for (const int threads : {1, 2, 3, 7}) {
    Reads reads({std::as_bytes(std::span(a)), std::as_bytes(std::span(b))}, threads);
    EXPECT_EQ(reads.bytes(), 8 * (a.size() + b.size()));
    for (int i = 0; i < 50; ++i) ASSERT_EQ(reads.sum(), expected) << threads << " threads";
    ++a[5000];  // nothing is remembered
    EXPECT_EQ(reads.sum(), expected + 1);
    --a[5000];
  }
}

TEST(Reads, TakesAnyPlaceAndLength) {
  std::vector<std::byte> bytes(1000, std::byte{1});
  const uint64_t word = 0x0101010101010101;
  Reads reads({std::span(bytes).subspan(1, 21), std::span(bytes).subspan(3, 0)}, 2);
  EXPECT_EQ(reads.sum(), 2 * word);
}

}  // namespace
}  // namespace clary::support
