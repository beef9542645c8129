// Float64 attention straight from the definition (docs/semantics.md), and the three error measures.
#pragma once

#include <cstdint>
#include <vector>

#include "support/problem.h"

namespace clary::support {

struct Exact {
  std::vector<double> out;  // [B, Hq, Lq, Dv] of the rows asked for, in the order of `rows`
  std::vector<double> lse;
  // sqrt(sum_j p_j^2 v_j^2) per element of `out`: what independent relative errors of the products p_j v_j add up to.
  // On data of mean 0 it is as large as the output; where V has offsets the output is far larger than it.
  std::vector<double> spread;
};

// A row of the output: batch (or sequence), query head, query.
struct Row {
  int64_t batch, head, query;
};

// Every row of the problem, or about `limit` of them spread evenly when limit > 0.
std::vector<Row> rows_of(const Problem& problem, int64_t limit = 0);

// Shares no code with the library. Two passes per row, everything in double.
Exact exact_attention(const Problem& problem, const Tensors& tensors, const std::vector<Row>& rows, int threads = 1);

struct Errors {
  double cosine = 1, relative_l1 = 0, relative_l2 = 0, rmse = 0, max_abs = 0;
  int64_t mismatched_nonfinite = 0;  // places where one side is finite and the other is not, or infinities differ
  int64_t count = 0;                 // places where both are finite; the norms are over these
  double difference_norm = 0, reference_norm = 0, spread_norm = 0;
};

// The rows of tensors.out (resp. tensors.lse) against the oracle.
Errors output_errors(const Problem& problem, const Tensors& tensors, const std::vector<Row>& rows, const Exact& exact);
Errors lse_errors(const Problem& problem, const Tensors& tensors, const std::vector<Row>& rows, const Exact& exact);

}  // namespace clary::support
