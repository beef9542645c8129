// clary_merge: attention over all keys from attention over parts of them.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "clary/clary.hpp"
#include "support/call.h"
#include "support/harness.h"

namespace clary::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();

// Parts of a merge, all [B, H, L, D] (or BSHD) with LSE [B, H, L].
struct Parts {
  std::vector<Tensor> outs, lses;
  Tensor out, lse;

  clary_status run(clary_layout layout = CLARY_BHSD, clary_context* context = nullptr) {
    std::vector<const clary_tensor*> out_views, lse_views;
    for (const Tensor& part : outs) out_views.push_back(part.view());
    for (const Tensor& part : lses) lse_views.push_back(part.view());
    return clary_merge(out_views.data(), lse_views.data(), static_cast<int64_t>(outs.size()), layout, out.view(),
                       lse.empty() ? nullptr : lse.view(), context);
  }
};

// Part p holds p + 1 everywhere, with weights 1 : 3.
Parts two_parts(const std::string& dtype = "f32") {
  Parts parts;
  for (int p = 0; p < 2; ++p) {
    Tensor out(dtype, {2, 3, 5, 4}), lse("f32", {2, 3, 5});
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t h = 0; h < 3; ++h)
        for (int64_t i = 0; i < 5; ++i) {
          lse.set(0, b, h, i, p == 0 ? 0 : std::log(3.0));
          for (int64_t c = 0; c < 4; ++c) out.set(b, h, i, c, p + 1);
        }
    parts.outs.push_back(out), parts.lses.push_back(lse);
  }
  parts.out = Tensor(dtype, {2, 3, 5, 4}), parts.lse = Tensor("f32", {2, 3, 5});
  return parts;
}

// Attention over the keys [begin, end) of `whole`.
Tensors attend_keys(const Problem& problem, const Tensors& whole, int64_t begin, int64_t end) {
  Problem part = problem;
  part.len_k = end - begin;
  Tensors tensors = make_tensors(part);
  tensors.q = whole.q;
  for (int64_t b = 0; b < problem.batch; ++b)
    for (int64_t h = 0; h < problem.heads_kv; ++h)
      for (int64_t j = begin; j < end; ++j) {
        for (int64_t c = 0; c < problem.dim_qk; ++c) tensors.k.set(b, h, j - begin, c, whole.k.at(b, h, j, c));
        for (int64_t c = 0; c < problem.dim_v; ++c) tensors.v.set(b, h, j - begin, c, whole.v.at(b, h, j, c));
      }
  EXPECT_EQ(run_guarded(part, tensors, shared_context("scalar")), CLARY_OK) << clary_last_error();
  return tensors;
}

TEST(Merge, PartsOfTheKeysAreTheWhole) {
  const Problem problem = support::parse_problem("b2 hq4 hkv2 lq7 lk40 d8 exact");
  Tensors whole = make_tensors(problem);
  ASSERT_EQ(run_guarded(problem, whole, shared_context("scalar")), CLARY_OK);
  Parts parts;
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 9}, {9, 9}, {9, 40}}) {
    Tensors part = attend_keys(problem, whole, begin, end);
    parts.outs.push_back(part.out), parts.lses.push_back(part.lse);
  }
  parts.out = Tensor("f32", whole.out.shape()), parts.lse = Tensor("f32", whole.lse.shape());
  ASSERT_EQ(parts.run(), CLARY_OK) << clary_last_error();
  double worst = 0, worst_lse = 0;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 4; ++h)
      for (int64_t i = 0; i < 7; ++i) {
        worst_lse = std::max(worst_lse, std::abs(parts.lse.at(0, b, h, i) - whole.lse.at(0, b, h, i)));
        for (int64_t c = 0; c < 8; ++c)
          worst = std::max(worst, std::abs(parts.out.at(b, h, i, c) - whole.out.at(b, h, i, c)));
      }
  EXPECT_LT(worst, 1e-6);
  EXPECT_LT(worst_lse, 2e-6);
}

TEST(Merge, EveryTypeLayoutAndNumberOfThreads) {
  for (const char* dtype : {"f32", "f16", "bf16"})
    for (const clary_layout layout : {CLARY_BHSD, CLARY_BSHD})
      for (const int threads : {0, 1, 3}) {
        Parts parts = two_parts(dtype);
        // As BSHD the same memory has 3 rows and 5 heads.
        if (layout == CLARY_BSHD)
          for (Tensor* lse : {&parts.lses[0], &parts.lses[1], &parts.lse}) {
            const double value = lse->at(0, 0, 0, 0);
            *lse = Tensor("f32", {2, 5, 3});
            for (int64_t i = 0; i < 30; ++i) lse->set(0, i / 15, i / 3 % 5, i % 3, value);
          }
        const ContextPointer context = threads == 0 ? nullptr : make_context("scalar", threads);
        ASSERT_EQ(parts.run(layout, context.get()), CLARY_OK) << clary_last_error();
        EXPECT_EQ(parts.out.at(1, 2, 4, 3), 1.75) << dtype << layout << threads;
        EXPECT_EQ(parts.out.at(0, 0, 0, 0), 1.75);
        EXPECT_NEAR(parts.lse.at(0, 1, 2, 2), std::log(4.0), 1e-6);
      }
}

TEST(Merge, PartsWithoutKeysAddNothing) {
  Parts parts = two_parts();
  parts.outs[0].set(0, 1, 2, 3, kNan), parts.lses[0].set(0, 0, 1, 2, -kInf);
  parts.lses[0].set(0, 1, 0, 0, -kInf), parts.lses[1].set(0, 1, 0, 0, -kInf);
  ASSERT_EQ(parts.run(), CLARY_OK);
  EXPECT_EQ(parts.out.at(0, 1, 2, 3), 2);
  EXPECT_EQ(parts.out.at(1, 0, 0, 0), 0);
  EXPECT_EQ(parts.lse.at(0, 1, 0, 0), -kInf);
  EXPECT_EQ(parts.out.at(0, 1, 1, 3), 1.75);
}

TEST(Merge, ResultMayBeAPartAndStridesAreAny) {
  Parts parts = two_parts();
  parts.out = Tensor("f32", {2, 3, 5, 4}, {100, 4, 20, 1});
  ASSERT_EQ(parts.run(), CLARY_OK) << clary_last_error();
  EXPECT_EQ(parts.out.at(1, 2, 4, 3), 1.75);
  const clary_tensor* outs[] = {parts.outs[0].view(), parts.outs[1].view()};
  const clary_tensor* lses[] = {parts.lses[0].view(), parts.lses[1].view()};
  ASSERT_EQ(clary_merge(outs, lses, 2, CLARY_BHSD, outs[1], lses[1], nullptr), CLARY_OK);
  EXPECT_EQ(parts.outs[1].at(1, 2, 4, 3), 1.75);
  EXPECT_NEAR(parts.lses[1].at(0, 1, 2, 4), std::log(4.0), 1e-6);
}

TEST(Merge, RefusesWhatIsWrong) {
  struct Refusal {
    const char* word;
    std::function<void(Parts&)> spoil;
  };
  for (const Refusal& refusal : std::vector<Refusal>{{"count", [](Parts& p) { p.outs.clear(), p.lses.clear(); }},
                                                     {"outs",
                                                      [](Parts& p) {
                                                        p.outs[1] = Tensor("f32", {2, 3, 4, 4});
                                                      }},
                                                     {"outs",
                                                      [](Parts& p) {
                                                        p.outs[0] = Tensor("bool", {2, 3, 5, 4});
                                                      }},
                                                     {"lses",
                                                      [](Parts& p) {
                                                        p.lses[1] = Tensor("f32", {2, 3, 4});
                                                      }},
                                                     {"lses",
                                                      [](Parts& p) {
                                                        p.lses[0] = Tensor("f16", {2, 3, 5});
                                                      }},
                                                     {"out",
                                                      [](Parts& p) {
                                                        p.out = Tensor("f32", {3, 5, 4});
                                                      }},
                                                     {"out",
                                                      [](Parts& p) {
                                                        p.out = Tensor("f32", {2, 3, 5, 4}, {0, 20, 4, 1});
                                                      }},
                                                     {"lse", [](Parts& p) {
                                                        p.lse = Tensor("f32", {2, 3, 5}, {0, 5, 1});
                                                      }}}) {
    Parts parts = two_parts();
    refusal.spoil(parts);
    EXPECT_EQ(parts.run(), CLARY_INVALID_ARGUMENT) << refusal.word;
    EXPECT_TRUE(has_word(clary_last_error(), refusal.word)) << clary_last_error();
  }
  Parts parts = two_parts();
  EXPECT_EQ(clary_merge(nullptr, nullptr, 1, CLARY_BHSD, parts.out.view(), nullptr, nullptr), CLARY_INVALID_ARGUMENT);
}

TEST(Merge, OfTheVeneer) {
  const std::vector<float> one(4, 1), two(4, 2), lse(2, 0.5f);
  std::vector<float> out(4), out_lse(2);
  const clary::TensorView outs[] = {{one.data(), {1, 1, 2, 2}}, {two.data(), {1, 1, 2, 2}}};
  const clary::TensorView lses[] = {{lse.data(), {1, 1, 2}}, {lse.data(), {1, 1, 2}}};
  const clary::MutableTensorView result(out.data(), {1, 1, 2, 2}), result_lse(out_lse.data(), {1, 1, 2});
  const auto status = clary::merge(outs, lses, result, result_lse);
  ASSERT_TRUE(status) << status.message();
  EXPECT_EQ(out, std::vector<float>(4, 1.5f));
  EXPECT_NEAR(out_lse[1], 0.5 + std::log(2.0), 1e-6);
  EXPECT_EQ(clary::merge(outs, std::span(lses).first(1), result).code(), CLARY_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace clary::test
