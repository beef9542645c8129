// FlashAttention's grid of shapes and its error rule:
//
//   max |out - ref| <= rtol * max |out_pt - ref| + 2 * max |ref + 0.3 - 0.3 - ref|,   rtol = 2, or 3 with softcap
//
// ref is float64 attention, out_pt the same formula with every intermediate rounded as a plain implementation of the
// same precision rounds it, and the last term, in the output's type, the size of its rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/data.h"
#include "support/harness.h"
#include "support/random_problem.h"
#include "support/tiles.h"

namespace clary::test {
namespace {

using Matrix = std::vector<std::vector<double>>;  // [token][channel]

double round_to(DType type, double value) {
  const float single = static_cast<float>(value);
  if (type == DType::f16) return support::float_from_f16(support::f16_from_float(single));
  return type == DType::bf16 ? support::float_from_bf16(support::bf16_from_float(single)) : single;
}

Matrix load(const Problem& p, const Tensor& tensor, int64_t b, int64_t h, int64_t first, int64_t length, int64_t dim) {
  Matrix m(static_cast<size_t>(length), std::vector<double>(static_cast<size_t>(dim)));
  for (int64_t t = 0; t < length; ++t)
    for (int64_t d = 0; d < dim; ++d) {
      const int64_t at = p.lens_q.empty() ? b : 0;
      m[static_cast<size_t>(t)][static_cast<size_t>(d)] =
          p.layout == CLARY_BHSD ? tensor.at(at, h, first + t, d) : tensor.at(at, first + t, h, d);
    }
  return m;
}

void subtract_mean(Matrix& m, std::vector<double>& mean) {
  mean.assign(m.empty() ? 0 : m[0].size(), 0);
  for (const auto& row : m)
    for (size_t d = 0; d < row.size(); ++d) mean[d] += row[d] / static_cast<double>(m.size());
  for (auto& row : m)
    for (size_t d = 0; d < row.size(); ++d) row[d] -= mean[d];
}

// To the nearest of 255 levels of the row.
void fake_int8(std::vector<double>& row) {
  double largest = 0;
  for (const double x : row) largest = std::max(largest, std::abs(x));
  if (largest == 0) return;
  for (double& x : row) x = std::nearbyint(x * 127 / largest) * largest / 127;
}

// One head as a plain implementation of the precision would prepare it.
struct Prepared {
  Matrix k, v;
  std::vector<double> v_mean;
  bool int8_qk, int8_pv;
  DType type;  // of P and of the scores where they are 16 bits
};

Prepared prepare(const Problem& p, const Tensors& t, int64_t b, int64_t h) {
  const int64_t first = t.cu_seqlens_k.empty() ? 0 : t.cu_seqlens_k[static_cast<size_t>(b)];
  const int64_t length = support::length_k(p, b);
  Prepared head;
  head.k = load(p, t.k, b, h, first, length, p.dim_qk);
  head.v = load(p, t.v, b, h, first, length, p.dim_v);
  head.int8_qk = p.precision == CLARY_INT8 || p.precision == CLARY_INT8_F16;
  head.int8_pv = p.precision == CLARY_INT8;
  head.type = p.precision == CLARY_EXACT ? p.dtype : DType::bf16;
  std::vector<double> k_mean;
  if (head.int8_qk) subtract_mean(head.k, k_mean);
  for (auto& row : head.k) {
    if (head.int8_qk)
      fake_int8(row);
    else
      for (double& x : row) x = round_to(head.type, x);
  }
  head.v_mean.assign(static_cast<size_t>(p.dim_v), 0);
  if (head.int8_pv && length > 0) {
    subtract_mean(head.v, head.v_mean);
    std::vector<double> channel(head.v.size());
    for (size_t d = 0; d < head.v_mean.size(); ++d) {
      for (size_t j = 0; j < channel.size(); ++j) channel[j] = head.v[j][d];
      fake_int8(channel);
      for (size_t j = 0; j < channel.size(); ++j) head.v[j][d] = channel[j];
    }
  } else {
    for (auto& row : head.v)
      for (double& x : row) x = round_to(head.type, x);
  }
  return head;
}

// out_pt of one row.
std::vector<double> plain_row(const Problem& p, const Tensors& t, const Prepared& head, const Row& row) {
  const int64_t first = t.cu_seqlens_q.empty() ? 0 : t.cu_seqlens_q[static_cast<size_t>(row.batch)];
  std::vector<double> q = load(p, t.q, row.batch, row.head, first + row.query, 1, p.dim_qk)[0];
  if (head.int8_qk)
    fake_int8(q);
  else
    for (double& x : q) x = round_to(head.type, x);
  std::vector<double> scores(head.k.size(), -std::numeric_limits<double>::infinity());
  double m = -std::numeric_limits<double>::infinity();
  for (size_t j = 0; j < head.k.size(); ++j) {
    if (!visible(p, t, row.batch, row.head, row.query, static_cast<int64_t>(j))) continue;
    double s = 0;
    for (size_t d = 0; d < q.size(); ++d) s += q[d] * head.k[j][d];
    s *= support::scale_of(p);
    if (p.softcap > 0) s = p.softcap * std::tanh(s / p.softcap);
    scores[j] = head.int8_qk ? s : round_to(head.type, s);
    m = std::max(m, scores[j]);
  }
  std::vector<double> out(static_cast<size_t>(p.dim_v), 0);
  if (m == -std::numeric_limits<double>::infinity()) return out;
  double sum = 0, block_largest = 1;
  for (size_t j = 0; j < scores.size(); ++j) {
    if (j % 256 == 0) {
      block_largest = 0;
      for (size_t n = j; n < std::min(j + 256, scores.size()); ++n)
        block_largest = std::max(block_largest, std::exp(scores[n] - m));
    }
    double probability = std::exp(scores[j] - m);
    sum += probability;
    if (!head.int8_pv)
      probability = round_to(head.type, probability);
    else if (block_largest > 0)
      probability = std::nearbyint(probability * 255 / block_largest) * block_largest / 255;
    for (size_t d = 0; d < out.size(); ++d) out[d] += probability * head.v[j][d];
  }
  for (size_t d = 0; d < out.size(); ++d) out[d] = round_to(p.dtype, out[d] / sum + head.v_mean[d]);
  return out;
}

struct Rule {
  double error = 0, plain_error = 0, rounding = 0, rtol = 2;
  bool holds() const { return error <= rtol * plain_error + 2 * rounding; }
};

Rule rule_of(const Problem& p, const Tensors& t, const std::vector<Row>& rows) {
  const Exact exact = exact_attention(p, t, rows);
  Rule rule;
  rule.rtol = p.softcap > 0 ? 3 : 2;
  Prepared head;
  int64_t batch = -1, kv_head = -1;
  for (size_t r = 0; r < rows.size(); ++r) {
    const Row& row = rows[r];
    const int64_t h = row.head * p.heads_kv / p.heads_q;
    if (row.batch != batch || h != kv_head) head = prepare(p, t, batch = row.batch, kv_head = h);
    const std::vector<double> plain = plain_row(p, t, head, row);
    const int64_t first = t.cu_seqlens_q.empty() ? 0 : t.cu_seqlens_q[static_cast<size_t>(row.batch)];
    const std::vector<double> got = load(p, t.out, row.batch, row.head, first + row.query, 1, p.dim_v)[0];
    for (size_t d = 0; d < plain.size(); ++d) {
      const double ref = exact.out[r * plain.size() + d];
      rule.error = std::max(rule.error, std::isfinite(got[d]) ? std::abs(got[d] - ref) : INFINITY);
      rule.plain_error = std::max(rule.plain_error, std::abs(plain[d] - ref));
      const double there = round_to(p.dtype, ref + 0.3), back = round_to(p.dtype, there - 0.3);
      rule.rounding = std::max(rule.rounding, std::abs(back - ref));
    }
  }
  return rule;
}

void expect_rule(const Problem& p, const std::string& isa) {
  Tensors tensors = make_tensors(p);
  ASSERT_EQ(run_guarded(p, tensors, shared_context(isa)), CLARY_OK)
      << support::to_string(p) << ": " << clary_last_error();
  const Rule rule = rule_of(p, tensors, rows_of(p, 48));
  EXPECT_TRUE(rule.holds()) << "clary check \"" << support::to_string(p) << "\" --isa " << isa << "\n  error "
                            << rule.error << " > " << rule.rtol << " * " << rule.plain_error << " + 2 * "
                            << rule.rounding;
}

// The options of FlashAttention's grid, drawn anew for every shape.
Problem draw(RandomProblems& random, int64_t len_q, int64_t len_k, int64_t dim) {
  Problem p;
  p.len_q = len_q, p.len_k = len_k, p.dim_qk = p.dim_v = dim;
  p.batch = static_cast<int64_t>(1 + random.below(2));
  p.heads_q = 6;
  p.heads_kv = std::vector<int64_t>{6, 2, 1}[random.below(3)];
  p.dtype = random.one_in(2) ? DType::f16 : DType::bf16;
  p.layout = random.one_in(2) ? CLARY_BSHD : CLARY_BHSD;
  if (random.one_in(2)) p.causal = CLARY_CAUSAL_BOTTOM_RIGHT;
  if (random.one_in(3)) p.window_left = static_cast<int64_t>(random.below(static_cast<uint64_t>(len_k)));
  if (random.one_in(3)) p.window_right = static_cast<int64_t>(random.below(static_cast<uint64_t>(len_k)));
  if (random.one_in(3)) p.softcap = 15;
  p.precision = std::vector<clary_precision>{CLARY_EXACT, CLARY_BF16, CLARY_INT8_F16, CLARY_INT8}[random.below(4)];
  p.seed = random.below(1 << 30);
  return p;
}

using Lengths = std::pair<int64_t, int64_t>;

const std::vector<Lengths> kSmall = {{1, 1},     {64, 128},  {128, 192}, {256, 256}, {239, 1},   {799, 3},
                                     {113, 203}, {113, 128}, {128, 217}, {113, 211}, {108, 256}, {97, 97},
                                     {1, 239},   {3, 799},   {200, 200}, {257, 257}};
const std::vector<Lengths> kLarge = {{256, 512},   {384, 256},   {640, 128},   {512, 256},
                                     {1024, 1024}, {1023, 1024}, {1024, 1023}, {1, 20000}};
const std::vector<Lengths> kVarlen = {{1, 1},    {1, 3},     {2, 1},     {511, 1},   {3, 513},
                                      {64, 128}, {113, 203}, {128, 217}, {108, 256}, {307, 256}};

class FlashGrid : public testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(Isas, FlashGrid, testing::ValuesIn(isas()),
                         [](const auto& instance) { return identifier(instance.param); });

TEST_P(FlashGrid, SmallShapes) {
  RandomProblems random(environment_or("CLARY_TEST_SEED", 1));
  // The sets in plain C++ take a part of the head dims: they are a hundred times slower.
  const bool slow = GetParam() == "scalar" || GetParam() == "amx-emulated";
  const std::vector<int64_t> dims =
      slow ? std::vector<int64_t>{59, 128} : std::vector<int64_t>{32, 59, 64, 96, 111, 128, 192, 256};
  for (const auto& [len_q, len_k] : kSmall)
    for (const int64_t dim : dims) {
      Problem p = draw(random, len_q, len_k, dim);
      if (len_q * len_k * dim > 4'000'000) p.batch = 1, p.heads_q = 2, p.heads_kv = 1;
      expect_rule(p, GetParam());
    }
}

TEST_P(FlashGrid, Varlen) {
  RandomProblems random(environment_or("CLARY_TEST_SEED", 2));
  for (const auto& [len_q, len_k] : kVarlen)
    for (const int64_t dim : {64, 128}) {
      Problem p = draw(random, len_q, len_k, dim);
      p.heads_q = p.heads_kv = 2;
      p.batch = 3;
      for (int64_t b = 0; b < p.batch; ++b) {
        const auto up_to = [&](int64_t n) { return static_cast<int64_t>(random.below(static_cast<uint64_t>(n) + 1)); };
        p.lens_q.push_back(static_cast<int32_t>(b == 0 ? len_q : up_to(len_q)));
        p.lens_k.push_back(static_cast<int32_t>(b == 0 ? len_k : up_to(len_k)));
      }
      expect_rule(p, GetParam());
    }
}

// The larger shapes run on the instruction set that users get, with sampled rows.
TEST(FlashGridBest, LargeShapes) {
  RandomProblems random(environment_or("CLARY_TEST_SEED", 3));
  for (const auto& [len_q, len_k] : kLarge)
    for (const int64_t dim : {64, 128, 256}) expect_rule(draw(random, len_q, len_k, dim), isas().front());
  for (const int64_t length : {4096, 4224}) {
    Problem p = draw(random, length, length, 128);
    p.precision = length == 4096 ? CLARY_EXACT : CLARY_INT8;
    p.batch = 1, p.heads_q = 2, p.heads_kv = 1;
    expect_rule(p, isas().front());
  }
}

// Negative control: the rule must see an output that is off by a few times what the precision explains.
TEST(FlashGridBest, TheRuleCatchesFaults) {
  for (const clary_precision precision : {CLARY_EXACT, CLARY_BF16, CLARY_INT8_F16, CLARY_INT8}) {
    Problem p = support::parse_problem("h2 lq113 lk203 d64 bf16 causal");
    p.precision = precision;
    Tensors tensors = make_tensors(p);
    ASSERT_EQ(run_guarded(p, tensors, shared_context(isas().front())), CLARY_OK);
    const std::vector<Row> rows = rows_of(p);
    const Rule right = rule_of(p, tensors, rows);
    ASSERT_TRUE(right.holds());
    const double fault = 1.5 * (right.rtol * right.plain_error + 2 * right.rounding);
    Tensors shifted = tensors;
    shifted.out.set(0, 1, 57, 3, tensors.out.at(0, 1, 57, 3) + fault + right.error);
    EXPECT_FALSE(rule_of(p, shifted, rows).holds());
    Tensors missing = tensors;
    missing.out.set(0, 1, 112, 3, NAN);
    EXPECT_FALSE(rule_of(p, missing, rows).holds());
    Problem other = p;  // one key too many in every row
    other.causal = CLARY_CAUSAL_OFFSET;
    other.causal_offset = 203 - 113 + 1;
    ASSERT_EQ(run_guarded(other, shifted, shared_context(isas().front())), CLARY_OK);
    EXPECT_FALSE(rule_of(p, shifted, rows).holds());
  }
}

}  // namespace
}  // namespace clary::test
