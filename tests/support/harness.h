// Running a described problem on one instruction set, in guarded memory, and judging its output.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "clary/clary.h"
#include "support/guarded.h"
#include "support/oracle.h"
#include "support/problem.h"

namespace clary::support {
// GoogleTest prints problems as the line that `clary check` takes.
inline void PrintTo(const Problem& problem, std::ostream* stream) { *stream << '"' << to_string(problem) << '"'; }
}  // namespace clary::support

namespace clary::test {

using support::Data;
using support::DType;
using support::Errors;
using support::Exact;
using support::MaskKind;
using support::Problem;
using support::Row;
using support::Tensor;
using support::Tensors;

// The instruction sets that this machine runs, best first.
inline std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (int i = 0; i < clary_isa_count(); ++i)
    if (clary_isa_supported(i)) names.emplace_back(clary_isa_name(i));
  return names;
}

// A test's name may hold letters and digits only.
inline std::string identifier(std::string text) {
  for (char& c : text)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return text;
}

struct ContextDeleter {
  void operator()(clary_context* context) const { clary_context_destroy(context); }
};
using ContextPointer = std::unique_ptr<clary_context, ContextDeleter>;

// Workspace that is full of NaN: what a kernel reads before it writes shows in the output.
inline void* allocate_nan(void*, size_t bytes) {
  void* const memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  return memory ? std::memset(memory, 0xff, bytes) : nullptr;
}
inline void release_nan(void*, void* memory, size_t) { std::free(memory); }

inline ContextPointer make_context(const std::string& isa, int threads = 1) {
  clary_context_options options;
  clary_context_options_init(&options);
  options.allocate = allocate_nan;
  options.release = release_nan;
  options.isa = isa.empty() ? nullptr : isa.c_str();
  options.threads = threads;
  clary_context* context = nullptr;
  if (clary_context_create(&options, &context) != CLARY_OK) throw std::runtime_error(clary_last_error());
  return ContextPointer(context);
}

// One context of one thread per instruction set, kept: its workspace then serves calls of many shapes in a row.
inline clary_context* shared_context(const std::string& isa) {
  static std::map<std::string, ContextPointer> contexts;
  ContextPointer& context = contexts[isa];
  if (!context) context = make_context(isa);
  return context.get();
}

struct PlanDeleter {
  void operator()(clary_plan* plan) const { clary_plan_destroy(plan); }
};
using PlanPointer = std::unique_ptr<clary_plan, PlanDeleter>;

inline PlanPointer make_plan(const Problem& problem, const Tensors& tensors, clary_context* context) {
  const clary_attention_params params = make_params(problem, tensors);
  clary_plan* plan = nullptr;
  const Tensors& t = tensors;
  const clary_status status =
      clary_plan_create(t.q.view(), t.k.view(), t.v.view(), t.out.view(), t.lse.view(), &params, context, &plan);
  if (status != CLARY_OK) throw std::runtime_error(support::to_string(problem) + ": " + clary_last_error());
  return PlanPointer(plan);
}

// A tensor's elements copied between inaccessible pages.
struct GuardedTensor {
  GuardedTensor(const Tensor& tensor, Side side)
      : memory(tensor.data(), tensor.size_bytes(), side), view(*tensor.view()) {
    view.data = memory.data();
  }
  const clary_tensor* get() const { return &view; }
  Guarded memory;
  clary_tensor view;
};

inline const clary_tensor* view_or_null(const Tensor& tensor, const GuardedTensor& guarded) {
  return tensor.empty() ? nullptr : guarded.get();
}

// Runs the problem once. Inputs are read-only and every tensor touches an inaccessible page on `side`; out and LSE
// start as NaN, so that a place nobody writes is seen. The result is in tensors.out and tensors.lse.
inline clary_status run_guarded(const Problem& problem, Tensors& tensors, clary_context* context,
                                Side side = Side::end) {
  GuardedTensor q(tensors.q, side), k(tensors.k, side), v(tensors.v, side), mask(tensors.mask, side);
  GuardedTensor slopes(tensors.alibi_slopes, side), sinks(tensors.sinks, side);
  GuardedTensor out(tensors.out, side), lse(tensors.lse, side);
  for (GuardedTensor* input : {&q, &k, &v, &mask, &slopes, &sinks}) input->memory.make_read_only();
  for (GuardedTensor* output : {&out, &lse})
    if (output->memory.size_bytes() > 0) std::memset(output->memory.data(), 0xff, output->memory.size_bytes());
  const size_t cu_bytes = tensors.cu_seqlens_q.size() * sizeof(int32_t);
  Guarded cu_q(tensors.cu_seqlens_q.data(), cu_bytes, side), cu_k(tensors.cu_seqlens_k.data(), cu_bytes, side);
  clary_attention_params params = make_params(problem, tensors);
  params.mask = view_or_null(tensors.mask, mask);
  params.alibi_slopes = view_or_null(tensors.alibi_slopes, slopes);
  params.sinks = view_or_null(tensors.sinks, sinks);
  if (cu_bytes > 0) {
    params.cu_seqlens_q = static_cast<const int32_t*>(cu_q.data());
    params.cu_seqlens_k = static_cast<const int32_t*>(cu_k.data());
  }
  const clary_tensor* const lse_or_null = view_or_null(tensors.lse, lse);
  const clary_status status = clary_attention(q.get(), k.get(), v.get(), out.get(), lse_or_null, &params, context);
  if (out.memory.size_bytes() > 0) std::memcpy(tensors.out.data(), out.memory.data(), out.memory.size_bytes());
  if (lse.memory.size_bytes() > 0) std::memcpy(tensors.lse.data(), lse.memory.data(), lse.memory.size_bytes());
  return status;
}

inline bool is_amx(const std::string& isa) { return isa.starts_with("amx"); }

// Relative L2 error on N(0, 1) against float64, from the table of what each precision reaches.
inline double normal_gate(const Problem& problem, const std::string& isa) {
  switch (problem.precision) {
    case CLARY_EXACT: return 2e-6;
    case CLARY_BF16X3: return is_amx(isa) ? 1e-5 : 2e-6;  // `exact` without a matrix engine
    case CLARY_BF16: return 0.0045;
    case CLARY_INT8_F16: return 0.013;
    case CLARY_INT4: return 0.11;  // 4-bit K on Gaussian data: a score error of sigma 0.1
    default: return is_amx(isa) && problem.dim_v <= 64 ? 0.013 : 0.018;  // there AMX multiplies P V in bf16
  }
}

// How much larger a problem's scores are than those of N(0, 1) at 1 / sqrt(Dk): the error of a score grows with it.
inline double score_growth(const Problem& problem) {
  const double scale = std::abs(support::scale_of(problem)) * std::sqrt(static_cast<double>(problem.dim_qk));
  const double data = problem.data == Data::peaked ? 3 : problem.data == Data::outliers ? 8 : 1;
  return std::max(1.0, scale * data);
}

// Rounding of the output to 16 bits, relative to its values (half a unit in the last place).
inline double output_rounding(const Problem& problem) {
  if (problem.dtype == DType::f32 || problem.out_f32) return 6e-8;
  return problem.dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
}

// Errors that all the values of a channel share where it is nearly constant: sums in f32, and V rounded to bf16.
inline double value_rounding(clary_precision precision) {
  if (precision == CLARY_BF16X3) return 0x1p-16;
  return precision == CLARY_BF16 || precision == CLARY_INT8_F16 ? 0x1p-8 : 3e-6;
}

// Bounds that hold for any problem, however small: the gate relative to the spread of the products (see Exact), with
// room for the chance of few values, plus the rounding of the output.
struct Bound {
  double out_norm, lse;
};

// Of a score, at worst: with one channel nothing averages it out. A bf16 is off by 2^-8 of itself, for both operands.
// Of two bf16 the low one is, which is 2^-8 of the number; and as much is the product of both low ones, which is left
// out.
inline double score_rounding(const Problem& problem, const std::string& isa) {
  if (problem.precision == CLARY_BF16) return 0x1p-7;
  return problem.precision == CLARY_BF16X3 && is_amx(isa) ? 3 * 0x1p-16 : 0;
}

inline Bound bound_of(const Problem& problem, const std::string& isa, const Errors& errors, const Exact& exact) {
  const double count = static_cast<double>(std::max<int64_t>(1, errors.count));
  const double growth = score_growth(problem), gate = normal_gate(problem, isa);
  double largest = 0;  // of the logits, by the LSE: f32 keeps 24 bits of them
  for (const double lse : exact.lse)
    if (std::isfinite(lse)) largest = std::max(largest, std::abs(lse));
  const double relative = gate * growth * (1.25 + 4 / std::sqrt(count)) + 3e-7 * largest;
  Bound bound;
  bound.out_norm = relative * errors.spread_norm +
                   (output_rounding(problem) + value_rounding(problem.precision)) * errors.reference_norm;
  // An f16 output below 2^-14 loses bits to its fixed smallest unit.
  bound.out_norm += problem.dtype == DType::f16 && !problem.out_f32 ? 0x1p-25 * std::sqrt(count) : 1e-30;
  bound.lse = gate * 5 * growth + score_rounding(problem, isa) * largest + 1e-6 * (1 + largest);
  return bound;
}

// The general check of an output: finite where it must be, within the bounds, LSE too.
inline testing::AssertionResult agrees(const Problem& problem, const Tensors& tensors, const std::vector<Row>& rows,
                                       const Exact& exact, const std::string& isa) {
  const Errors out = output_errors(problem, tensors, rows, exact);
  const Bound bound = bound_of(problem, isa, out, exact);
  auto failure = testing::AssertionFailure();
  failure << "clary check \"" << support::to_string(problem) << "\" --isa " << isa << "\n  ";
  if (out.mismatched_nonfinite) return failure << out.mismatched_nonfinite << " outputs differ in being finite";
  if (!(out.difference_norm <= bound.out_norm))
    return failure << "error " << out.difference_norm << " > " << bound.out_norm << " (norm of the reference "
                   << out.reference_norm << ", spread " << out.spread_norm << ", largest error " << out.max_abs << ")";
  if (tensors.lse.empty()) return testing::AssertionSuccess();
  const Errors lse = lse_errors(problem, tensors, rows, exact);
  if (lse.mismatched_nonfinite) return failure << lse.mismatched_nonfinite << " LSEs differ in being finite";
  if (!(lse.max_abs <= bound.lse)) return failure << "LSE error " << lse.max_abs << " > " << bound.lse;
  return testing::AssertionSuccess();
}

// Makes the tensors, runs them on one instruction set and judges all rows.
inline testing::AssertionResult runs_right(const Problem& problem, const std::string& isa, Side side = Side::end) {
  Tensors tensors = make_tensors(problem);
  const clary_status status = run_guarded(problem, tensors, shared_context(isa), side);
  if (status != CLARY_OK)
    return testing::AssertionFailure() << support::to_string(problem) << " on " << isa << ": " << clary_last_error();
  const std::vector<Row> rows = rows_of(problem);
  return agrees(problem, tensors, rows, exact_attention(problem, tensors, rows), isa);
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  if (a.size_bytes() != b.size_bytes()) return false;
  return a.size_bytes() == 0 || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace clary::test
