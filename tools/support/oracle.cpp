#include "support/oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <thread>
#include <utility>

namespace clary::support {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Element (batch or sequence, head, token, channel) of Q, K, V or out in either layout, varlen or not.
double element(const Problem& p, const Tensor& tensor, int64_t first, int64_t b, int64_t h, int64_t t, int64_t d) {
  if (!p.lens_q.empty()) b = 0, t += first;
  return p.layout == CLARY_BHSD ? tensor.at(b, h, t, d) : tensor.at(b, t, h, d);
}

int64_t first_q(const Tensors& tensors, int64_t b) {
  return tensors.cu_seqlens_q.empty() ? 0 : tensors.cu_seqlens_q[static_cast<size_t>(b)];
}

int64_t first_k(const Tensors& tensors, int64_t b) {
  return tensors.cu_seqlens_k.empty() ? 0 : tensors.cu_seqlens_k[static_cast<size_t>(b)];
}

// K and V of one key-value head in double.
struct Head {
  std::vector<double> k, v;
};

Head load_head(const Problem& problem, const Tensors& tensors, int64_t b, int64_t h) {
  Head head;
  const int64_t length = length_k(problem, b), first = first_k(tensors, b);
  head.k.reserve(static_cast<size_t>(length * problem.dim_qk));
  head.v.reserve(static_cast<size_t>(length * problem.dim_v));
  for (int64_t j = 0; j < length; ++j) {
    for (int64_t d = 0; d < problem.dim_qk; ++d) head.k.push_back(element(problem, tensors.k, first, b, h, j, d));
    for (int64_t d = 0; d < problem.dim_v; ++d) head.v.push_back(element(problem, tensors.v, first, b, h, j, d));
  }
  return head;
}

double dot(const double* a, const double* b, int64_t n) {
  double sum[4] = {0, 0, 0, 0};
  int64_t d = 0;
  for (; d + 4 <= n; d += 4)
    for (int i = 0; i < 4; ++i) sum[i] += a[d + i] * b[d + i];
  for (; d < n; ++d) sum[0] += a[d] * b[d];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Is key j hidden from query i, by position or by mask? The mask's addend is left in *addend.
bool hidden(const Problem& problem, const Tensors& tensors, const Row& row, int64_t offset, int64_t j, double* addend) {
  const int64_t aligned = row.query + offset;
  *addend = 0;
  if (problem.causal != CLARY_NOT_CAUSAL && j > aligned) return true;
  if (problem.window_left >= 0 && j < aligned - problem.window_left) return true;
  if (problem.window_right >= 0 && j > aligned + problem.window_right) return true;
  if (tensors.mask.empty()) return false;
  const double value = tensors.mask.at(row.batch, row.head, row.query, j);
  if (tensors.mask.dtype() == "bool") return value == 0;
  *addend = value;
  return value == -kInfinity;
}

struct RowResult {
  double *out, *spread, *lse;
};

void attend(const Problem& problem, const Tensors& tensors, const Head& head, const Row& row, const RowResult& result) {
  const int64_t length = length_k(problem, row.batch), offset = alignment_offset(problem, row.batch);
  const int64_t dim = problem.dim_qk, dim_v = problem.dim_v, first = first_q(tensors, row.batch);
  std::vector<double> q(static_cast<size_t>(dim)), scores(static_cast<size_t>(length));
  for (int64_t d = 0; d < dim; ++d) {
    q[static_cast<size_t>(d)] = element(problem, tensors.q, first, row.batch, row.head, row.query, d);
  }
  const double slope = tensors.alibi_slopes.empty() ? 0 : tensors.alibi_slopes.at(0, 0, row.batch, row.head);
  const double scale = scale_of(problem);
  std::vector<int64_t> visible;
  double m = tensors.sinks.empty() ? -kInfinity : tensors.sinks.at(0, 0, 0, row.head);
  const double sink = m;
  for (int64_t j = 0; j < length; ++j) {
    double addend;
    if (hidden(problem, tensors, row, offset, j, &addend)) continue;
    double s = scale * dot(q.data(), head.k.data() + j * dim, dim);
    if (problem.softcap > 0) s = problem.softcap * std::tanh(s / problem.softcap);
    s -= slope * std::abs(static_cast<double>(row.query + offset - j));
    s += addend;
    scores[static_cast<size_t>(j)] = s;
    visible.push_back(j);
    if (s > m || std::isnan(s)) m = s;
    if (std::isnan(m)) break;
  }
  double* const out = result.out;
  double* const spread = result.spread;
  std::fill(out, out + dim_v, std::isnan(m) ? m : 0.0);
  *result.lse = visible.empty() ? sink : m;
  if (visible.empty() || std::isnan(m)) return;
  double sum = tensors.sinks.empty() ? 0 : std::exp(sink - m);
  for (const int64_t j : visible) {
    const double p = std::exp(scores[static_cast<size_t>(j)] - m);
    sum += p;
    for (int64_t d = 0; d < dim_v; ++d) {
      const double product = p * head.v[static_cast<size_t>(j * dim_v + d)];
      out[d] += product;
      spread[d] += product * product;
    }
  }
  for (int64_t d = 0; d < dim_v; ++d) out[d] /= sum, spread[d] = std::sqrt(spread[d]) / sum;
  *result.lse = m + std::log(sum);
}

// Adds one pair of values to running sums.
struct Sums {
  double dot = 0, aa = 0, bb = 0, diff1 = 0, ref1 = 0, diff2 = 0, spread2 = 0, max_abs = 0;
  int64_t count = 0, mismatched = 0;

  void add(double got, double want, double spread = 0) {
    if (!std::isfinite(got) || !std::isfinite(want)) {
      mismatched += !(got == want || (std::isnan(got) && std::isnan(want)));
      return;
    }
    const double diff = std::abs(got - want);
    dot += got * want, aa += got * got, bb += want * want;
    diff1 += diff, ref1 += std::abs(want), diff2 += diff * diff, spread2 += spread * spread;
    max_abs = std::max(max_abs, diff);
    ++count;
  }

  Errors errors() const {
    Errors e;
    // An error against an all-zero reference has no relative size: infinite, unless there is none.
    const auto relative = [](double d, double r) { return d == 0 ? 0 : r == 0 ? kInfinity : d / r; };
    e.cosine = aa == 0 && bb == 0 ? 1 : aa == 0 || bb == 0 ? 0 : dot / std::sqrt(aa) / std::sqrt(bb);
    e.relative_l1 = relative(diff1, ref1);
    e.relative_l2 = relative(std::sqrt(diff2), std::sqrt(bb));
    e.rmse = count ? std::sqrt(diff2 / static_cast<double>(count)) : 0;
    e.max_abs = max_abs;
    e.mismatched_nonfinite = mismatched;
    e.count = count;
    e.difference_norm = std::sqrt(diff2), e.reference_norm = std::sqrt(bb), e.spread_norm = std::sqrt(spread2);
    return e;
  }
};

}  // namespace

namespace {

int64_t sample_place(int64_t n, int64_t count, int64_t total) {
  const int64_t begin = n * total / count, end = (n + 1) * total / count;
  const double turn = 0.5 + static_cast<double>(n) * 0.6180339887498949, place = turn - std::floor(turn);
  return begin + static_cast<int64_t>(place * static_cast<double>(end - begin));
}

}  // namespace

std::vector<Row> rows_of(const Problem& problem, int64_t limit) {
  int64_t total = 0;
  for (int64_t b = 0; b < problem.batch; ++b) total += length_q(problem, b) * problem.heads_q;
  const int64_t count = limit > 0 ? std::min(limit, total) : total;
  std::vector<Row> rows;
  rows.reserve(static_cast<size_t>(count));
  int64_t index = 0, next = 0;
  for (int64_t b = 0; b < problem.batch; ++b)
    for (int64_t h = 0; h < problem.heads_q; ++h)
      for (int64_t i = 0; i < length_q(problem, b); ++i, ++index)
        // One sample in each of `count` equal parts, at a place in it that walks by the golden ratio: the middles would
        // be the same few rows of every head when heads and samples fall in step.
        if (next < count && index == sample_place(next, count, total)) rows.push_back({b, h, i}), ++next;
  return rows;
}

Exact exact_attention(const Problem& problem, const Tensors& tensors, const std::vector<Row>& rows, int threads) {
  Exact exact;
  exact.out.resize(rows.size() * static_cast<size_t>(problem.dim_v));
  exact.spread.resize(exact.out.size());
  exact.lse.resize(rows.size());
  std::map<std::pair<int64_t, int64_t>, std::vector<size_t>> by_head;
  const int64_t group = problem.heads_q / problem.heads_kv;
  for (size_t r = 0; r < rows.size(); ++r) by_head[{rows[r].batch, rows[r].head / group}].push_back(r);
  for (const auto& [key, indices] : by_head) {
    const Head head = load_head(problem, tensors, key.first, key.second);
    const auto share = [&, &list = indices](size_t first) {
      for (size_t n = first; n < list.size(); n += static_cast<size_t>(std::max(1, threads))) {
        const size_t r = list[n], at = r * static_cast<size_t>(problem.dim_v);
        attend(problem, tensors, head, rows[r], {exact.out.data() + at, exact.spread.data() + at, &exact.lse[r]});
      }
    };
    std::vector<std::thread> helpers;
    for (int t = 1; t < threads; ++t) helpers.emplace_back(share, static_cast<size_t>(t));
    share(0);
    for (auto& helper : helpers) helper.join();
  }
  return exact;
}

Errors output_errors(const Problem& problem, const Tensors& tensors, const std::vector<Row>& rows, const Exact& exact) {
  Sums sums;
  size_t at = 0;
  for (const Row& row : rows) {
    const int64_t first = first_q(tensors, row.batch);
    for (int64_t d = 0; d < problem.dim_v; ++d, ++at) {
      const double got = element(problem, tensors.out, first, row.batch, row.head, row.query, d);
      sums.add(got, exact.out[at], exact.spread[at]);
    }
  }
  return sums.errors();
}

Errors lse_errors(const Problem& problem, const Tensors& tensors, const std::vector<Row>& rows, const Exact& exact) {
  Sums sums;
  const bool varlen = !problem.lens_q.empty();
  for (size_t r = 0; r < rows.size(); ++r) {
    const Row& row = rows[r];
    const int64_t first = first_q(tensors, row.batch);
    sums.add(tensors.lse.at(0, varlen ? 0 : row.batch, row.head, row.query + first), exact.lse[r]);
  }
  return sums.errors();
}

}  // namespace clary::support
