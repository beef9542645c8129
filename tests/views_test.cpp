// Strides, offsets and broadcasts of views: the same numbers at other places give the same bits.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "support/harness.h"

namespace clary::test {
namespace {

class Views : public testing::TestWithParam<std::string> {
 protected:
  clary_context* context() const { return shared_context(GetParam()); }
  // The dense run that every view is compared with.
  Tensors dense(const Problem& p) const {
    Tensors tensors = make_tensors(p);
    EXPECT_EQ(run_guarded(p, tensors, context()), CLARY_OK) << clary_last_error();
    return tensors;
  }
};

INSTANTIATE_TEST_SUITE_P(Isas, Views, testing::ValuesIn(isas()),
                         [](const auto& instance) { return identifier(instance.param); });

// Copies the elements to memory laid out by `strides`, the gaps filled with 0xff (NaN).
Tensor restride(const Tensor& source, std::vector<int64_t> strides) {
  Tensor target(source.dtype(), source.shape(), std::move(strides));
  std::memset(target.data(), 0xff, target.size_bytes());
  const auto& s = source.shape();
  for (int64_t a = 0; a < s[0]; ++a)
    for (int64_t b = 0; b < s[1]; ++b)
      for (int64_t c = 0; c < s[2]; ++c)
        for (int64_t d = 0; d < s[3]; ++d) target.set(a, b, c, d, source.at(a, b, c, d));
  return target;
}

// Row-major strides in the order of dimensions given, each row followed by `gap` unused elements.
std::vector<int64_t> strides_in_order(const std::vector<int64_t>& shape, const std::vector<int>& order, int64_t gap) {
  std::vector<int64_t> strides(4);
  strides[3] = 1;
  int64_t stride = shape[3] + gap;
  for (size_t n = order.size(); n-- > 0;) {
    strides[static_cast<size_t>(order[n])] = stride;
    stride = stride * shape[static_cast<size_t>(order[n])] + gap;
  }
  return strides;
}

const std::vector<std::string> kLines = {"b2 hq4 hkv2 lq19 lk270 d33 exact",
                                         "b2 hq4 hkv2 lq19 lk270 d40 int8 causal",
                                         "b2 hq4 hkv2 lq19 lk270 d64 dv32 int8_f16 f16",
                                         "b2 hq4 hkv2 lq19 lk270 d16 bf16 precision=bf16",
                                         "b2 hq4 hkv2 lq19 lk270 d40 bf16x3",
                                         "b2 hq4 hkv2 lq19 lk270 d64 int4 bshd"};

TEST_P(Views, AnyOrderOfDimensionsWithGaps) {
  for (const std::string& line : kLines)
    for (const auto& order : std::vector<std::vector<int>>{{0, 1, 2}, {0, 2, 1}, {2, 1, 0}, {1, 0, 2}, {2, 0, 1}})
      for (const int64_t gap : {1, 7}) {
        const Problem p = support::parse_problem(line);
        const Tensors expected = dense(p);
        Tensors t = make_tensors(p);
        for (Tensor* tensor : {&t.q, &t.k, &t.v, &t.out})
          *tensor = restride(*tensor, strides_in_order(tensor->shape(), order, gap));
        ASSERT_EQ(run_guarded(p, t, context()), CLARY_OK) << clary_last_error();
        const Tensor out = restride(t.out, strides_in_order(t.out.shape(), {0, 1, 2}, 0));
        EXPECT_TRUE(same_bits(out, expected.out)) << line << " gap " << gap;
        // restride() leaves the gaps 0xff, as run_guarded() does before the call: a write into a gap shows.
        EXPECT_TRUE(same_bits(restride(out, strides_in_order(out.shape(), order, gap)), t.out))
            << line << " gap " << gap;
      }
}

TEST_P(Views, PackedQkv) {
  for (const clary_precision precision : {CLARY_EXACT, CLARY_INT8, CLARY_INT8_F16, CLARY_INT4, CLARY_BF16X3}) {
    Problem p = support::parse_problem("b2 h3 l40 d24 bshd causal");
    p.precision = precision;
    const Tensors expected = dense(p);
    Tensors t = make_tensors(p);
    // One tensor [B, L, 3, H, D]; q, k and v are its slices, told apart by byte_offset.
    const int64_t row = 3 * 3 * 24;
    std::vector<float> packed(static_cast<size_t>(2 * 40 * row));
    const Tensor* parts[3] = {&t.q, &t.k, &t.v};
    for (int64_t n = 0; n < 3; ++n)
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t l = 0; l < 40; ++l)
          for (int64_t h = 0; h < 3; ++h)
            for (int64_t d = 0; d < 24; ++d)
              packed[static_cast<size_t>((b * 40 + l) * row + (n * 3 + h) * 24 + d)] =
                  static_cast<float>(parts[n]->at(b, l, h, d));
    const Guarded memory(packed.data(), packed.size() * sizeof(float), Side::end);
    const int64_t strides[4] = {40 * row, row, 24, 1};
    clary_tensor views[3] = {*t.q.view(), *t.k.view(), *t.v.view()};
    for (uint64_t n = 0; n < 3; ++n) {
      views[n].data = memory.data();
      views[n].strides = strides;
      views[n].byte_offset = n * 3 * 24 * sizeof(float);
    }
    const clary_attention_params params = make_params(p, t);
    ASSERT_EQ(clary_attention(&views[0], &views[1], &views[2], t.out.view(), t.lse.view(), &params, context()),
              CLARY_OK);
    EXPECT_TRUE(same_bits(t.out, expected.out)) << support::to_string(p);
    EXPECT_TRUE(same_bits(t.lse, expected.lse)) << support::to_string(p);
  }
}

TEST_P(Views, NullStridesAreDense) {
  const Problem p = support::parse_problem("b2 h2 lq19 lk30 d24 int8 mask=bool:0.5");
  const Tensors expected = dense(p);
  Tensors t = make_tensors(p);
  clary_tensor views[6] = {*t.q.view(), *t.k.view(), *t.v.view(), *t.out.view(), *t.lse.view(), *t.mask.view()};
  for (clary_tensor& view : views) view.strides = nullptr;
  clary_attention_params params = make_params(p, t);
  params.mask = &views[5];
  ASSERT_EQ(clary_attention(&views[0], &views[1], &views[2], &views[3], &views[4], &params, context()), CLARY_OK);
  EXPECT_TRUE(same_bits(t.out, expected.out));
  EXPECT_TRUE(same_bits(t.lse, expected.lse));
}

TEST_P(Views, StrideZeroSharesKeysBetweenBatches) {
  const Problem p = support::parse_problem("b3 hq4 hkv2 lq19 lk70 d24 int8");
  Tensors repeated = make_tensors(p);
  for (Tensor* tensor : {&repeated.k, &repeated.v})
    for (size_t b = 1, bytes = tensor->size_bytes() / 3; b < 3; ++b)
      std::memcpy(static_cast<char*>(tensor->data()) + b * bytes, tensor->data(), bytes);
  Tensors shared = repeated;
  shared.k = Tensor("f32", {3, 2, 70, 24}, {0, 70 * 24, 24, 1});
  shared.v = shared.k;
  std::memcpy(shared.k.data(), repeated.k.data(), shared.k.size_bytes());
  std::memcpy(shared.v.data(), repeated.v.data(), shared.v.size_bytes());
  ASSERT_EQ(run_guarded(p, repeated, context()), CLARY_OK);
  ASSERT_EQ(run_guarded(p, shared, context()), CLARY_OK) << clary_last_error();
  EXPECT_TRUE(same_bits(repeated.out, shared.out));
}

// A dimension of size 1 may have any stride, even in the last place.
TEST_P(Views, StridesOfSizeOneAreIgnored) {
  const Problem p = support::parse_problem("b1 h1 lq1 lk9 d1 exact");
  const Tensors expected = dense(p);
  Tensors t = make_tensors(p);
  clary_tensor q = *t.q.view();
  const int64_t strides[4] = {-77, 1 << 20, 12345, 999};
  q.strides = strides;
  const clary_attention_params params = make_params(p, t);
  ASSERT_EQ(clary_attention(&q, t.k.view(), t.v.view(), t.out.view(), nullptr, &params, context()), CLARY_OK)
      << clary_last_error();
  EXPECT_TRUE(same_bits(t.out, expected.out));
}

// A mask of fewer dimensions broadcasts from the right, as in NumPy; strides may be 0.
TEST_P(Views, MasksOfFewerDimensions) {
  for (const char* kind : {"bool", "additive"})
    for (const std::string pattern : {":bhq", ":bh", ":b"}) {
      const std::string line = std::string("b2 h3 lq19 lk300 d16 int8 mask=") + kind + ":0.5" + pattern;
      const Problem p = support::parse_problem(line);
      const Tensors expected = dense(p);
      Tensors t = make_tensors(p);
      const auto& shape = t.mask.shape();
      const int32_t dropped = static_cast<int32_t>(pattern.size()) - 1;
      clary_tensor mask = *t.mask.view();
      mask.ndim = 4 - dropped;
      mask.shape += dropped;
      mask.strides += dropped;
      clary_attention_params params = make_params(p, t);
      params.mask = &mask;
      ASSERT_EQ(clary_attention(t.q.view(), t.k.view(), t.v.view(), t.out.view(), nullptr, &params, context()),
                CLARY_OK)
          << clary_last_error();
      EXPECT_TRUE(same_bits(t.out, expected.out)) << support::to_string(p);
      // The same mask, its missing dimensions spelled with stride 0.
      const int64_t full[4] = {2, 3, shape[2], shape[3]};
      int64_t strides[4] = {0, 0, t.mask.view()->strides[2], 1};
      if (pattern == ":b") strides[1] = t.mask.view()->strides[1];
      clary_tensor zero_strides = *t.mask.view();
      zero_strides.shape = full;
      zero_strides.strides = strides;
      params.mask = &zero_strides;
      Tensors again = make_tensors(p);
      ASSERT_EQ(clary_attention(t.q.view(), t.k.view(), t.v.view(), again.out.view(), nullptr, &params, context()),
                CLARY_OK)
          << clary_last_error();
      EXPECT_TRUE(same_bits(again.out, expected.out)) << support::to_string(p);
    }
}

TEST_P(Views, Uint8MasksAndAnyNonZeroByte) {
  const Problem p = support::parse_problem("b1 h2 lq19 lk300 d16 int8 mask=bool:0.5");
  const Tensors expected = dense(p);
  Tensors t = make_tensors(p);
  auto* const bytes = static_cast<unsigned char*>(t.mask.data());
  for (size_t n = 0; n < t.mask.size_bytes(); ++n)
    if (bytes[n]) bytes[n] = static_cast<unsigned char>(1 + n % 255);
  clary_tensor mask = *t.mask.view();
  mask.dtype_code = 1;
  clary_attention_params params = make_params(p, t);
  params.mask = &mask;
  ASSERT_EQ(clary_attention(t.q.view(), t.k.view(), t.v.view(), t.out.view(), nullptr, &params, context()), CLARY_OK)
      << clary_last_error();
  EXPECT_TRUE(same_bits(t.out, expected.out));
}

TEST_P(Views, AlibiSlopesPerBatch) {
  const Problem p = support::parse_problem("b2 h4 lq19 lk70 d16 exact alibi");
  Tensors t = make_tensors(p);
  t.alibi_slopes = Tensor("f32", {2, 4});
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 4; ++h) t.alibi_slopes.set(0, 0, b, h, 0.01 * static_cast<double>(3 * b + h));
  ASSERT_EQ(run_guarded(p, t, context()), CLARY_OK) << clary_last_error();
  const auto rows = rows_of(p);
  EXPECT_TRUE(agrees(p, t, rows, exact_attention(p, t, rows), GetParam()));
}

}  // namespace
}  // namespace clary::test
