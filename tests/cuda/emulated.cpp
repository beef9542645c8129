#include "cuda/emulated.h"

#include "core/status.h"
#include "cuda/attention/kernels.h"
#include "cuda/emulator/machine.h"
#include "cuda/judge.h"
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
      {"sm80", kernels_of(cuda::KernelsSm80())},   {"sm89", kernels_of(cuda::KernelsSm89())},
      {"sm90", kernels_of(cuda::KernelsSm90())},   {"sm100", kernels_of(cuda::KernelsSm100())},
      {"sm120", kernels_of(cuda::KernelsSm120())},
  };
  return kernels.at(arch);
}

void emulate_quantiser(const cuda::CudaPlan& plan) {
  if (plan.has_statistics)
    launch(grid(plan.statistics), cuda::kQuantiseThreads, cuda::kStatisticsSharedBytes,
           [&] { cuda::Statistics<Machine>::run(plan.quantise, 0); });
  launch(grid(plan.pack), cuda::kQuantiseThreads, static_cast<size_t>(plan.pack_shared_bytes),
         [&] { cuda::pack<Machine>(plan.quantise, 0); });
  if (plan.has_classes)
    launch(grid(plan.survey), cuda::kClassThreads, 0, [&] { cuda::classify<Machine>(plan.classes); });
}

void emulate_attention(const std::string& arch, const cuda::CudaPlan& plan) {
  for (const EmulatedKernel& k : emulated_kernels(arch))
    if (k.instance.qk == plan.instance->qk && k.instance.pv == plan.instance->pv &&
        k.instance.dim == plan.instance->dim)
      return k.run(plan.attention, plan.items);
}

clary_status run_emulated(const std::string& arch, const Problem& problem, Tensors& tensors, const Tamper& tamper) {
  cuda::CudaPlan plan;
  CLARY_TRY(make_plan(arch, problem, tensors, nullptr, plan));
  Guarded workspace(plan.workspace_bytes, Side::end);
  std::memset(workspace.data(), 0xff, workspace.size_bytes());
  CLARY_TRY(make_plan(arch, problem, tensors, workspace.data(), plan));
  std::memset(tensors.out.data(), 0xff, tensors.out.size_bytes());
  if (!tensors.lse.empty()) std::memset(tensors.lse.data(), 0xff, tensors.lse.size_bytes());
  if (plan.items == 0) return CLARY_OK;
  emulate_quantiser(plan);
  if (!tamper || !tamper(plan)) emulate_attention(arch, plan);
  return CLARY_OK;
}

testing::AssertionResult emulated_agrees(const std::string& arch, const Problem& problem, Tensors& tensors) {
  const std::string what = '"' + support::to_string(problem) + "\" on " + arch + ": ";
  cuda::CudaPlan plan;
  if (make_plan(arch, problem, tensors, nullptr, plan) != CLARY_OK) return testing::AssertionFailure() << what;
  const testing::AssertionResult result = judge(problem, plan.instance->pv == cuda::Element::e4m3, tensors);
  return result ? result : testing::AssertionFailure() << what << result.message();
}

testing::AssertionResult emulated_runs_right(const std::string& arch, const Problem& problem, const Tamper& tamper) {
  Tensors tensors = make_tensors(problem);
  if (run_emulated(arch, problem, tensors, tamper) != CLARY_OK)
    return testing::AssertionFailure() << support::to_string(problem) << " on " << arch << ": " << clary_last_error();
  return emulated_agrees(arch, problem, tensors);
}

}  // namespace clary::test
