// How much work a case is: the visible scores, counted exactly.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "case.h"

namespace clary::command {
namespace {

using support::Problem;
using support::Tensor;

struct Range {
  int64_t first, last;  // keys first .. last; empty when last < first
};

Range visible_range(const Problem& p, int64_t aligned, int64_t len_k) {
  Range range{0, len_k - 1};
  if (p.causal != CLARY_NOT_CAUSAL) range.last = std::min(range.last, aligned);
  if (p.window_right >= 0) range.last = std::min(range.last, aligned + p.window_right);
  if (p.window_left >= 0) range.first = std::max(range.first, aligned - p.window_left);
  return range;
}

// counts[j] = visible entries of a mask row before key j.
void count_row(const Tensor& mask, int64_t batch, int64_t head, int64_t query, std::vector<int64_t>& counts) {
  const bool boolean = mask.dtype() == "bool";
  for (size_t j = 0; j + 1 < counts.size(); ++j) {
    const double value = mask.at(batch, head, query, static_cast<int64_t>(j));
    counts[j + 1] = counts[j] + (boolean ? value != 0 : value != -HUGE_VAL);
  }
}

// Size of dimension n of [B, Hq, Lq, Lk] in a mask of up to 4 dimensions.
int64_t mask_size(const Tensor& mask, size_t n) {
  const size_t missing = 4 - std::min<size_t>(4, mask.shape().size());
  return n < missing ? 1 : mask.shape()[n - missing];
}

double masked_scores(const Case& c, int64_t batch) {
  const Problem& p = c.problem;
  const Tensor& mask = c.tensors.mask;
  const int64_t len_q = support::length_q(p, batch), len_k = support::length_k(p, batch);
  const int64_t offset = support::alignment_offset(p, batch), heads = mask_size(mask, 1);
  std::vector<int64_t> counts(static_cast<size_t>(len_k) + 1);
  int64_t total = 0;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < len_q; ++i) {
      if (i == 0 || mask_size(mask, 2) > 1) count_row(mask, batch, h, i, counts);
      const Range range = visible_range(p, i + offset, len_k);
      if (range.last >= range.first)
        total += counts[static_cast<size_t>(range.last) + 1] - counts[static_cast<size_t>(range.first)];
    }
  return static_cast<double>(total) * static_cast<double>(p.heads_q / heads);
}

}  // namespace

double visible_scores(const Case& c) {
  const Problem& p = c.problem;
  double total = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    if (!c.tensors.mask.empty()) {
      total += masked_scores(c, b);
      continue;
    }
    const int64_t len_k = support::length_k(p, b), offset = support::alignment_offset(p, b);
    double per_head = 0;
    for (int64_t i = 0, n = support::length_q(p, b); i < n; ++i) {
      const Range range = visible_range(p, i + offset, len_k);
      per_head += static_cast<double>(std::max<int64_t>(0, range.last - range.first + 1));
    }
    total += per_head * static_cast<double>(p.heads_q);
  }
  return total;
}

double all_scores(const Case& c) {
  double total = 0;
  for (int64_t b = 0; b < c.problem.batch; ++b)
    total +=
        static_cast<double>(support::length_q(c.problem, b)) * static_cast<double>(support::length_k(c.problem, b));
  return total * static_cast<double>(c.problem.heads_q);
}

double operations(const Case& c, double scores) {
  return 2 * scores * static_cast<double>(c.problem.dim_qk + c.problem.dim_v);
}

}  // namespace clary::command
