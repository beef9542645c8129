// Index arithmetic of layouts and fragments, lane by lane against plain references.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "cuda/attention/kernels.h"
#include "cuda/layout/fragments.h"
#include "cuda/layout/image.h"
#include "cuda/layout/tiles.h"
#include "cuda/quantise/params.h"

namespace clary::cuda {
namespace {

TEST(CudaLayout, ImagesHoldEveryByteOnce) {
  for (const int row_bytes : {32, 64, 96, 128, 192, 256, 384, 512})
    for (const int rows : {32, 64, 128, 256}) {
      std::vector<int> hits(static_cast<size_t>(rows * row_bytes));
      for (int row = 0; row < rows; ++row)
        for (int byte = 0; byte < row_bytes; ++byte) ++hits[image_offset(rows, row_bytes, row, byte)];
      EXPECT_EQ(std::count(hits.begin(), hits.end(), 1), rows * row_bytes) << rows << " x " << row_bytes;
    }
}

// How many of the 32 banks the eight 16-byte rows of a matrix cover.
template <class Offset>
size_t banks(int first_row, int byte, const Offset& offset) {
  std::set<uint32_t> found;
  for (int row = first_row; row < first_row + 8; ++row)
    for (uint32_t word = 0; word < 4; ++word) found.insert((offset(row, byte) / 4 + word) % 32);
  return found.size();
}

TEST(CudaLayout, MatricesAreReadWithoutBankConflicts) {
  for (const int row_bytes : {32, 64, 96, 128, 192, 256, 384, 512})
    for (int byte = 0; byte < row_bytes; byte += 16)
      for (int row = 0; row < 64; row += 8) {
        EXPECT_EQ(banks(row, byte, [&](int r, int b) { return image_offset(64, row_bytes, r, b); }), 32u) << row_bytes;
      }
  // The test would see it: without the swizzle all rows fall on the same banks.
  EXPECT_EQ(banks(0, 0, [](int r, int b) { return static_cast<uint32_t>(r * 128 + b); }), 4u);
}

TEST(CudaLayout, MatrixAddressesAreThoseOfTheImage) {
  const auto check = [](auto rows, auto row_bytes) {
    constexpr int kRows = decltype(rows)::value, kRowBytes = decltype(row_bytes)::value;
    for (int lane_row = 0; lane_row < 16; ++lane_row)
      for (const int lane_byte : {0, 16})
        for (int step = 0; step < kRowBytes / kStepBytes; ++step)
          for (int strip = 0; strip < kRows / 16; ++strip) {
            const MatrixAddress<kRows, kRowBytes> at(lane_row, lane_byte);
            ASSERT_EQ(at.at(step, strip),
                      image_offset(kRows, kRowBytes, strip * 16 + lane_row, step * kStepBytes + lane_byte));
          }
  };
  using std::integral_constant;
  check(integral_constant<int, 64>(), integral_constant<int, 32>());
  check(integral_constant<int, 64>(), integral_constant<int, 64>());
  check(integral_constant<int, 128>(), integral_constant<int, 96>());
  check(integral_constant<int, 64>(), integral_constant<int, 192>());
  check(integral_constant<int, 32>(), integral_constant<int, 384>());
  check(integral_constant<int, 128>(), integral_constant<int, 128>());
  check(integral_constant<int, 64>(), integral_constant<int, 256>());
  check(integral_constant<int, 32>(), integral_constant<int, 512>());
}

TEST(CudaLayout, FragmentsCoverTheirMatrices) {
  std::set<std::pair<int, int>> accumulator, a, b;
  for (int lane = 0; lane < 32; ++lane)
    for (int r = 0; r < 4; ++r) {
      accumulator.insert({acc_row(lane, r), acc_column(lane, r)});
      a.insert({a_row(lane, r), a_byte(lane, r)});
      if (r < 2) b.insert({b_row(lane), b_byte(lane, r)});
    }
  EXPECT_EQ(accumulator.size(), 16u * 8);
  EXPECT_EQ(a.size(), 16u * 8);  // words of four bytes
  EXPECT_EQ(b.size(), 8u * 8);
}

// ldmatrix from its definition: register q of lane l is word l % 4 of row l / 4 of matrix q, whose rows are at the
// addresses of lanes 8 q .. 8 q + 7.
TEST(CudaLayout, LdmatrixAddressesGiveTheOperands) {
  for (int lane = 0; lane < 32; ++lane)
    for (int q = 0; q < 4; ++q) {
      const int source = 8 * q + lane / 4;
      EXPECT_EQ(a_address_row(source), a_row(lane, q));
      EXPECT_EQ(a_address_byte(source) + 4 * (lane % 4), a_byte(lane, q));
      EXPECT_EQ(b_address_row(source), b_row(lane) + 8 * (q / 2));
      EXPECT_EQ(b_address_byte(source) + 4 * (lane % 4), b_byte(lane, q % 2));
    }
}

TEST(CudaLayout, RowsAreWholeSteps) {
  for (const Element e : {Element::s8, Element::s4, Element::f16, Element::bf16})
    for (const int dim : {32, 64, 96, 128, 192, 256}) {
      EXPECT_EQ(qk_row_bytes(e, dim) % kStepBytes, 0);
      EXPECT_EQ(qk_row_bytes(e, dim) - dim * bits_of(e) / 8, e == Element::s4 && dim % 64 != 0 ? 16 : 0);
    }
}

// P of key j of a row must meet V of key j: the k slot at which an A operand holds it is the slot where V^T has it.
TEST(CudaLayout, ProbabilitiesMeetTheirValues) {
  for (const Element p : {Element::e4m3, Element::f16, Element::bf16}) {
    const int per_register = 32 / bits_of(p), per_step = 256 / bits_of(p);
    std::set<std::pair<int, int>> seen;
    for (int lane = 0; lane < 32; ++lane)
      for (int step = 0; step < 64 / per_step; ++step)
        for (int r = 0; r < 4; ++r)
          for (int e = 0; e < per_register; ++e) {
            const AccumulatorPlace at = place_of_p(p, step, r, e);
            const int row = acc_row(lane, at.i), key = 8 * at.tile + acc_column(lane, at.i);
            const int slot = step * per_step + a_byte(lane, r) * 8 / bits_of(p) + e;
            EXPECT_EQ(row, a_row(lane, r));
            EXPECT_EQ(slot_of_key(key, p), slot);
            EXPECT_EQ(key_of_slot(slot, p), key);
            seen.insert({row, key});
          }
    EXPECT_EQ(seen.size(), 16u * 64);
  }
}

TEST(CudaLayout, AThreadHasOneScaleOfK) {
  for (int lane = 0; lane < 32; ++lane)
    for (int tile = 0; tile < 16; ++tile)
      for (int i = 0; i < 4; ++i) EXPECT_EQ(group_of_key(8 * tile + acc_column(lane, i)), lane % 4);
}

// wgmma finds row r of a step at the descriptor's address + r / 8 strides + r % 8 rows of the swizzle, and exchanges
// chunks of 16 bytes by the address bits from 7 on.
TEST(CudaLayout, DescriptorsFindTheImage) {
  for (const int row_bytes : {64, 96, 128, 192, 256, 384, 512})
    for (int step = 0; step < row_bytes / kStepBytes; ++step)
      for (int row = 0; row < 128; ++row)
        for (const int byte : {0, 16}) {
          const uint32_t high = descriptor_high(row_bytes), r = static_cast<uint32_t>(row);
          const uint32_t width = 256u >> (high >> 30), stride = (high & 0x3fff) * 16;
          const uint32_t low = descriptor_low(0) + descriptor_step(128, row_bytes, step);
          uint32_t at = (low & 0x3fff) * 16 + r / 8 * stride + r % 8 * width + static_cast<uint32_t>(byte);
          at ^= (at / 128 % (width / 16)) * 16;
          ASSERT_EQ(at, image_offset(128, row_bytes, row, step * kStepBytes + byte)) << row_bytes << ' ' << row;
        }
  EXPECT_EQ(descriptor_low(0x12340) & 0x3fff, 0x1234u);
}

// ---- tiles and sequences -----------------------------------------------------------------------------------------

TEST(CudaTiles, RangesAgreeWithRows) {
  uint64_t random = 1;
  const auto below = [&](int64_t n) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int64_t>((random >> 33) % static_cast<uint64_t>(n));
  };
  for (int trial = 0; trial < 20000; ++trial) {
    const Span span{0, 0, 0, static_cast<int32_t>(1 + below(300)), static_cast<int32_t>(below(400))};
    const Visibility sees{below(2) == 0, static_cast<Align>(below(3)), below(800) - 400, below(2) ? -1 : below(300),
                          below(2) ? -1 : below(300)};
    const int rows = 64, keys = 64;
    const int64_t first = below(ceil_div(span.len_q, rows)) * rows;
    const TileRange range = tile_range(sees, span, first, rows, keys);
    for (int tile = 0; tile < ceil_div(span.len_k, keys); ++tile) {
      bool any = false, all = true;
      for (int64_t i = first; i < smaller(first + rows, span.len_q); ++i)
        for (int64_t j = tile * keys; j < tile * keys + keys; ++j) {
          const int64_t at = i + sees.aligned(span);
          const bool seen = j < span.len_k && (!sees.causal || j <= at) &&
                            (sees.window_left < 0 || j >= at - sees.window_left) &&
                            (sees.window_right < 0 || j <= at + sees.window_right);
          any |= seen, all &= seen;
        }
      ASSERT_TRUE(!any || (tile >= range.begin && tile < range.end));
      ASSERT_EQ(all, tile >= range.begin && tile < range.end && sees_all(range, tile, keys));
    }
  }
}

TEST(CudaTiles, SequencesGetTilesOfTheirOwn) {
  const std::vector<int32_t> cu = {0, 0, 1, 64, 64, 129, 300, 301, 1000};
  Geometry g{};
  g.sequences = static_cast<int32_t>(cu.size()) - 1, g.len_q = g.len_k = g.max_len_q = g.max_len_k = 1000;
  g.tile_rows = g.tile_keys = 64, g.cu_q = g.cu_k = cu.data();
  for (int64_t s = 0; s < g.sequences; ++s) {
    const int64_t end = s + 1 < g.sequences ? g.query_base(s + 1) : g.query_tiles();
    EXPECT_GE(end - g.query_base(s), ceil_div(g.span(s).len_q, 64)) << s;
  }
}

TEST(CudaTiles, CuSeqlensOutOfRangeStayInside) {
  const std::vector<int32_t> cu = {-5, 2000, 10, 700};
  Geometry g{};
  g.sequences = 3, g.len_q = g.len_k = 1000, g.max_len_q = g.max_len_k = 100, g.tile_rows = g.tile_keys = 64;
  g.cu_q = g.cu_k = cu.data();
  for (int64_t s = 0; s < 3; ++s) {
    const Span span = g.span(s);
    EXPECT_GE(span.len_q, 0);
    EXPECT_LE(span.len_q, 100);
    EXPECT_GE(span.q_begin, 0);
    EXPECT_LE(span.q_begin + span.len_q, 1000);
    EXPECT_LE(g.query_base(s) + ceil_div(span.len_q, 64), g.query_tiles());
  }
}

TEST(CudaTiles, EveryItemIsWorkedOnOnce) {
  Geometry g{};
  g.sequences = 3, g.heads_q = 5, g.max_len_q = 1000, g.tile_rows = 128, g.heads_together = 4;
  for (const bool causal : {false, true}) {
    std::set<std::tuple<int, int, int>> seen;
    for (int64_t i = 0; i < work_items(g); ++i) {
      const Work w = work_item(g, {causal, Align::bottom_right, 0, -1, -1}, i);
      seen.insert({w.sequence, w.head, w.tile});
    }
    EXPECT_EQ(seen.size(), 3u * 5 * 8);
    EXPECT_EQ(work_item(g, {causal, Align::bottom_right, 0, -1, -1}, 0).tile, causal ? 7 : 0);
  }
}

// ---- instances ------------------------------------------------------------------------------------------------------

template <class... Configs>
std::vector<Instance> instances(KernelList<Configs...>) {
  return {describe_instance<Configs>(Configs::kPersistent)...};
}

TEST(CudaInstances, AreWithinTheirArchitecture) {
  const std::vector<std::pair<int, std::vector<Instance>>> lists = {{99, instances(KernelsSm80())},
                                                                    {99, instances(KernelsSm89())},
                                                                    {227, instances(KernelsSm90())},
                                                                    {99, instances(KernelsSm100())},
                                                                    {99, instances(KernelsSm120())}};
  for (const auto& [kilobytes, list] : lists) {
    std::set<std::tuple<Element, Element, int>> kinds;
    for (const Instance& i : list) {
      EXPECT_LE(i.shared_bytes, kilobytes * 1024);
      EXPECT_TRUE(kinds.insert({i.qk, i.pv, i.dim}).second) << "two kernels for the same";
      QuantiseParams p{};
      p.shape.dim = i.dim, p.shape.tile_keys = i.tile_keys, p.pv = i.pv;
      EXPECT_LE(PackShared(0, p).bytes, 48u * 1024) << "the pack kernel asks for no more than the default";
      EXPECT_LE(i.tile_keys, kMostTileKeys);
    }
    for (const Element e : {Element::f16, Element::bf16, Element::s8})
      for (const int dim : {64, 96, 128, 192, 256})
        EXPECT_TRUE(kinds.contains({e, e == Element::s8 ? Element::f16 : e, dim}));
  }
}

}  // namespace
}  // namespace clary::cuda
