// What the result of a CUDA kernel may differ by from float64; for emulated kernels and for those on a GPU.
#pragma once

#include "support/harness.h"

namespace clary::test {

// Relative L2 error on N(0, 1): what the number formats leave. P and V in e4m3 have 3 bits of mantissa each.
inline double gpu_gate(const Problem& problem, bool fp8) {
  switch (problem.precision) {
    case CLARY_EXACT: return problem.dtype == DType::f16 ? 0.001 : 0.0045;
    case CLARY_BF16: return 0.0045;
    case CLARY_INT8_F16: return 0.016;
    case CLARY_INT4: return 0.25;
    default: return fp8 ? 0.045 : 0.016;
  }
}

// Compares about `limit` rows (0: all) with float64.
inline testing::AssertionResult judge(const Problem& problem, bool fp8, const Tensors& tensors, int64_t limit = 0) {
  const std::vector<Row> rows = rows_of(problem, limit);
  const Exact exact = exact_attention(problem, tensors, rows);
  const Errors out = output_errors(problem, tensors, rows, exact);
  const double count = static_cast<double>(std::max<int64_t>(1, out.count));
  const double g = gpu_gate(problem, fp8), growth = score_growth(problem);
  double largest = 0;
  for (const double lse : exact.lse)
    if (std::isfinite(lse)) largest = std::max(largest, std::abs(lse));
  double bound = g * growth * (1.25 + 4 / std::sqrt(count)) * out.spread_norm + 1e-6 * largest * out.spread_norm;
  bound += (output_rounding(problem) + 0x1p-8) * out.reference_norm + 0x1p-24 * std::sqrt(count);
  if (out.mismatched_nonfinite)
    return testing::AssertionFailure() << out.mismatched_nonfinite << " outputs differ in being finite";
  if (!(out.difference_norm <= bound))
    return testing::AssertionFailure() << "error " << out.difference_norm << " > " << bound << " (reference "
                                       << out.reference_norm << ", spread " << out.spread_norm << ", largest "
                                       << out.max_abs << ")";
  if (tensors.lse.empty()) return testing::AssertionSuccess();
  const Errors lse = lse_errors(problem, tensors, rows, exact);
  // Of a score of one channel, whose rounding to bf16 nothing averages out.
  const double score_rounding = problem.precision == CLARY_BF16 ? 0x1p-7 : g / 8;
  const double lse_bound = g * 5 * growth + score_rounding * largest + 3e-6 * (1 + largest);
  if (lse.mismatched_nonfinite)
    return testing::AssertionFailure() << lse.mismatched_nonfinite << " LSEs differ in being finite";
  if (!(lse.max_abs <= lse_bound))
    return testing::AssertionFailure() << "LSE error " << lse.max_abs << " > " << lse_bound;
  return testing::AssertionSuccess();
}

}  // namespace clary::test
