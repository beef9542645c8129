#include "cuda/emulated.h"

#include "core/status.h"
#include "cuda/attention/kernels.h"
#include "cuda/emulator/machine.h"
#include "cuda/quantise/classes.h"
#include "cuda/quantise/pack.h"
#include "cuda/quantise/statistics.h"

namespace clary::test {
namespace {

using emulated::Grid;
using emulated::launch;
using emulated::Machine;

template <class C>
EmulatedKernel kernel() {
  return {cuda::describe_instance<C>(C::kPersistent), [](const cuda::AttentionParams& p, int64_t items) {
            // Fewer processors than items, so that persistent blocks take several.
            const int64_t blocks = C::kPersistent ? std::min<int64_t>(items, 3) : items;
            launch({blocks, 1, 1}, C::kThreads, C::kSharedBytes, [&p] { C::template Kernel<Machine>::run(p, 0); });
          }};
}

template <class... Configs>
std::vector<EmulatedKernel> kernels_of(cuda::KernelList<Configs...>) {
  return {kernel<Configs>()...};
}

Grid grid(const cuda::GridSize& size) { return {size.x, size.y, size.z}; }

void run_plan(const cuda::CudaPlan& plan, const std::vector<EmulatedKernel>& kernels) {
  if (plan.has_statistics)
    launch(grid(plan.statistics), cuda::kQuantiseThreads, cuda::kStatisticsSharedBytes,
           [&] { cuda::Statistics<Machine>::run(plan.quantise, 0); });
  launch(grid(plan.pack), cuda::kQuantiseThreads, static_cast<size_t>(plan.pack_shared_bytes),
         [&] { cuda::pack<Machine>(plan.quantise, 0); });
  if (plan.has_classes)
    launch(grid(plan.survey), cuda::kClassThreads, 0, [&] { cuda::classify<Machine>(plan.classes); });
  for (const EmulatedKernel& k : kernels)
    if (k.instance.qk == plan.instance->qk && k.instance.pv == plan.instance->pv &&
        k.instance.dim == plan.instance->dim)
      return k.run(plan.attention, plan.items);
}

// Relative L2 error on N(0, 1): what the number formats leave. P and V in e4m3 have 3 bits of mantissa each.
double gate(const Problem& problem, const cuda::Instance& instance) {
  const bool fp8 = instance.pv == cuda::Element::e4m3;
  switch (problem.precision) {
    case CLARY_EXACT: return problem.dtype == DType::f16 ? 0.001 : 0.0045;
    case CLARY_BF16: return 0.0045;
    case CLARY_INT8_F16: return 0.016;
    case CLARY_INT4: return 0.25;
    default: return fp8 ? 0.045 : 0.016;
  }
}

testing::AssertionResult judge(const Problem& problem, const cuda::Instance& instance, const Tensors& tensors) {
  const std::vector<Row> rows = rows_of(problem);
  const Exact exact = exact_attention(problem, tensors, rows);
  const Errors out = output_errors(problem, tensors, rows, exact);
  const double count = static_cast<double>(std::max<int64_t>(1, out.count));
  const double g = gate(problem, instance), growth = score_growth(problem);
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
  const double lse_bound = g * (5 * growth + largest / 8) + 3e-6 * (1 + largest);
  if (lse.mismatched_nonfinite)
    return testing::AssertionFailure() << lse.mismatched_nonfinite << " LSEs differ in being finite";
  if (!(lse.max_abs <= lse_bound))
    return testing::AssertionFailure() << "LSE error " << lse.max_abs << " > " << lse_bound;
  return testing::AssertionSuccess();
}

clary_status make_plan(const std::string& arch, const Problem& problem, Tensors& tensors, void* workspace,
                       cuda::CudaPlan& plan) {
  static std::map<std::string, std::vector<cuda::Instance>> lists;
  std::vector<cuda::Instance>& instances = lists[arch];
  if (instances.empty())
    for (const EmulatedKernel& k : emulated_kernels(arch)) instances.push_back(k.instance);
  const clary_attention_params params = make_params(problem, tensors);
  clary::Problem checked;
  clary::Tensors pointers;
  CLARY_TRY(make_problem(tensors.q.view(), tensors.k.view(), tensors.v.view(), tensors.out.view(),
                         tensors.lse.empty() ? nullptr : tensors.lse.view(), &params, false, checked, pointers));
  return make_cuda_plan(checked, pointers, instances, arch.c_str(), workspace, plan);
}

}  // namespace

const std::vector<EmulatedKernel>& emulated_kernels(const std::string& arch) {
  static const std::map<std::string, std::vector<EmulatedKernel>> kernels = {
      {"sm80", kernels_of(cuda::KernelsSm80())},
      {"sm89", kernels_of(cuda::KernelsSm89())},
      {"sm90", kernels_of(cuda::KernelsSm90())},
      {"sm120", kernels_of(cuda::KernelsSm120())},
  };
  return kernels.at(arch);
}

clary_status run_emulated(const std::string& arch, const Problem& problem, Tensors& tensors) {
  cuda::CudaPlan plan;
  CLARY_TRY(make_plan(arch, problem, tensors, nullptr, plan));
  Guarded workspace(plan.workspace_bytes, Side::end);
  std::memset(workspace.data(), 0xff, workspace.size_bytes());
  CLARY_TRY(make_plan(arch, problem, tensors, workspace.data(), plan));
  std::memset(tensors.out.data(), 0xff, tensors.out.size_bytes());
  if (!tensors.lse.empty()) std::memset(tensors.lse.data(), 0xff, tensors.lse.size_bytes());
  if (plan.items > 0) run_plan(plan, emulated_kernels(arch));
  return CLARY_OK;
}

testing::AssertionResult emulated_runs_right(const std::string& arch, const Problem& problem) {
  Tensors tensors = make_tensors(problem);
  const clary_status status = run_emulated(arch, problem, tensors);
  const std::string what = '"' + support::to_string(problem) + "\" on " + arch + ": ";
  if (status != CLARY_OK) return testing::AssertionFailure() << what << clary_last_error();
  cuda::CudaPlan plan;
  if (make_plan(arch, problem, tensors, nullptr, plan) != CLARY_OK) return testing::AssertionFailure() << what;
  const testing::AssertionResult result = judge(problem, *plan.instance, tensors);
  return result ? result : testing::AssertionFailure() << what << result.message();
}

}  // namespace clary::test
