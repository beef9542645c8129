// clary_attention and clary_plan_*: check, plan, run.
#include <chrono>
#include <cmath>
#include <cstring>
#include <new>

#include "api/context.h"
#include "core/status.h"
#include "core/verbose.h"
#include "cuda/backend.h"
#include "plan/describe.h"
#include "plan/run.h"

struct clary_plan {
  clary_context* context = nullptr;
  clary::Plan plan;
  void* memory = nullptr;  // the plan's arrays
  size_t memory_bytes = 0;
  size_t workspace_bytes = 0;

  ~clary_plan() { context->allocator.give_back(memory, memory_bytes); }
};

namespace clary {
namespace {

// A terabyte of workspace is a mistake in the shape; the check also keeps sums of sizes within 64 bits.
constexpr double kMostWorkspaceBytes = 1e12;

clary_status check_size(const Problem& p) {
  const double keys = static_cast<double>(p.sequences) * static_cast<double>(p.max_len_k + kBlockKeys) *
                      static_cast<double>(p.heads_kv);
  const double rows = static_cast<double>(p.sequences) * static_cast<double>(p.heads_q);
  const double bytes = 4 * keys * static_cast<double>(p.dim_qk + p.dim_v + p.group + 4) + rows * 4096;
  const double tokens_kv =
      static_cast<double>(p.len_k) * static_cast<double>(p.heads_kv * (p.dim_qk + p.dim_v + p.group + 4)) * 4;
  const double needed =
      p.cu_seqlens_q == nullptr ? bytes : tokens_kv + rows * 4096 * static_cast<double>(p.dim_qk + p.dim_v);
  if (needed > kMostWorkspaceBytes)
    return fail(CLARY_OUT_OF_MEMORY, "k: this shape needs a workspace of about %.3g bytes, the limit is %.3g", needed,
                kMostWorkspaceBytes);
  return CLARY_OK;
}

size_t workspace_bytes(const Plan& plan, int threads) {
  Arena measure;
  Workspace(plan, threads, measure);
  return measure.used_bytes();
}

bool is_empty(const Problem& p) { return p.sequences == 0 || p.heads_q == 0 || p.len_q == 0; }

clary_status check_context(const clary_context* context) {
  return context != nullptr ? CLARY_OK : fail(CLARY_INVALID_ARGUMENT, "context: is NULL");
}

void run_and_report(Plan& plan, const Tensors& tensors, const Workspace& workspace, const Parallel& parallel) {
  const auto begin = std::chrono::steady_clock::now();
  run_plan(plan, tensors, workspace, parallel);
  if (is_verbose())
    report_run(plan, parallel.threads, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

// One call: plan and workspace share the context's memory.
clary_status attention_once(const Problem& problem, const Tensors& tensors, clary_context& context) {
  if (is_empty(problem)) return CLARY_OK;
  CLARY_TRY(check_size(problem));
  const std::lock_guard lock(context.mutex);
  const int threads = context.parallel.threads;
  // The plan's arrays have to exist before the workspace can be measured.
  Plan plan;
  Arena measure;
  make_plan(problem, *context.kernels, threads, measure, plan);
  Workspace(plan, threads, measure);
  CLARY_TRY(context.reserve(measure.used_bytes()));
  Arena arena(context.workspace);
  make_plan(problem, *context.kernels, threads, arena, plan);
  const Workspace workspace(plan, threads, arena);
  run_and_report(plan, tensors, workspace, context.parallel);
  return CLARY_OK;
}

clary_status create_plan(const Problem& problem, clary_context* context, clary_plan** result) {
  CLARY_TRY(check_size(problem));
  auto plan = std::unique_ptr<clary_plan>(new (std::nothrow) clary_plan);
  if (plan == nullptr) return fail(CLARY_OUT_OF_MEMORY, "no memory for a plan");
  plan->context = context;
  Arena measure;
  make_plan(problem, *context->kernels, context->parallel.threads, measure, plan->plan);
  plan->memory_bytes = measure.used_bytes() + 64;  // an empty problem still gets memory
  plan->memory = context->allocator.take(plan->memory_bytes);
  if (plan->memory == nullptr)
    return fail(CLARY_OUT_OF_MEMORY, "the allocator returned NULL for a plan of %zu bytes", plan->memory_bytes);
  Arena arena(plan->memory);
  make_plan(problem, *context->kernels, context->parallel.threads, arena, plan->plan);
  plan->plan.reset_heads();
  plan->workspace_bytes = workspace_bytes(plan->plan, context->parallel.threads);
  *result = plan.release();
  return CLARY_OK;
}

clary_status check_pointers(const Problem& p, const Tensors& t) {
  const auto missing = [](const char* what) { return fail(CLARY_INVALID_ARGUMENT, "%s: is NULL", what); };
  if (is_empty(p)) return CLARY_OK;
  if (t.q == nullptr) return missing("q");
  if (t.k == nullptr && p.len_k > 0) return missing("k");
  if (t.v == nullptr && p.len_k > 0) return missing("v");
  if (t.out == nullptr) return missing("out");
  if ((t.lse != nullptr) != p.has_lse)
    return fail(CLARY_INVALID_ARGUMENT, "lse: is %s, but the plan was made %s one", p.has_lse ? "NULL" : "given",
                p.has_lse ? "with" : "without");
  return CLARY_OK;
}

// Fills as much of a versioned struct as the caller knows; its `size` stays.
template <class Info>
clary_status give(const Info& full, const char* type, Info* to) {
  if (to == nullptr || to->size <= sizeof(size_t) || to->size > sizeof full)
    return fail(CLARY_INVALID_ARGUMENT, "info: is NULL, or its size is not sizeof(%s), here %zu", type, sizeof full);
  const size_t size = to->size;
  std::memcpy(to, &full, size);
  to->size = size;
  return CLARY_OK;
}

clary_status check_index(const char* what, int64_t i, int64_t count) {
  if (i >= 0 && i < count) return CLARY_OK;
  return fail(CLARY_INVALID_ARGUMENT, "%s: is %lld, allowed are 0 to %lld", what, static_cast<long long>(i),
              static_cast<long long>(count - 1));
}

}  // namespace
}  // namespace clary

void clary_attention_params_init(clary_attention_params* params) {
  *params = {};
  params->size = sizeof *params;
  params->precision = CLARY_AUTO;
  params->softmax_scale = std::nan("");
  params->window_left = params->window_right = -1;
  params->guard = std::nan("");
  params->guard_rows = 16;
}

clary_status clary_attention(const clary_tensor* q, const clary_tensor* k, const clary_tensor* v,
                             const clary_tensor* out, const clary_tensor* lse, const clary_attention_params* params,
                             clary_context* context) {
  clary::clear_error();
  clary::Problem problem;
  clary::Tensors tensors;
  CLARY_TRY(clary::make_problem(q, k, v, out, lse, params, false, problem, tensors));
  if (problem.device.is_cuda()) return clary::cuda::attention(problem, tensors);
  if (context != nullptr) return clary::attention_once(problem, tensors, *context);
  std::unique_ptr<clary_context> own;
  CLARY_TRY(clary::make_context(nullptr, own));
  return clary::attention_once(problem, tensors, *own);
}

clary_status clary_cuda_workspace_bytes(const clary_tensor* q, const clary_tensor* k, const clary_tensor* v,
                                        const clary_tensor* out, const clary_tensor* lse,
                                        const clary_attention_params* params, size_t* bytes) {
  clary::clear_error();
  if (bytes == nullptr) return clary::fail(CLARY_INVALID_ARGUMENT, "bytes: is NULL");
  clary::Problem problem;
  clary::Tensors tensors;
  CLARY_TRY(clary::make_problem(q, k, v, out, lse, params, true, problem, tensors));
  if (!problem.device.is_cuda())
    return clary::fail(CLARY_INVALID_ARGUMENT, "q: is on device_type 1 (CPU), must be on 2 (CUDA)");
  return clary::cuda::workspace_bytes(problem, *bytes);
}

clary_status clary_plan_create(const clary_tensor* q, const clary_tensor* k, const clary_tensor* v,
                               const clary_tensor* out, const clary_tensor* lse, const clary_attention_params* params,
                               clary_context* context, clary_plan** plan) {
  clary::clear_error();
  CLARY_TRY(clary::check_context(context));
  if (plan == nullptr) return clary::fail(CLARY_INVALID_ARGUMENT, "plan: is NULL");
  clary::Problem problem;
  clary::Tensors tensors;
  CLARY_TRY(clary::make_problem(q, k, v, out, lse, params, true, problem, tensors));
  if (problem.device.is_cuda())
    return clary::fail(CLARY_UNSUPPORTED, "q: is on device_type 2 (CUDA), plans are for the CPU; call clary_attention");
  return clary::create_plan(problem, context, plan);
}

clary_status clary_plan_run(clary_plan* plan, const void* q, const void* k, const void* v, void* out, float* lse) {
  clary::clear_error();
  if (plan == nullptr) return clary::fail(CLARY_INVALID_ARGUMENT, "plan: is NULL");
  const clary::Tensors tensors{q, k, v, out, lse};
  CLARY_TRY(clary::check_pointers(plan->plan.problem, tensors));
  if (clary::is_empty(plan->plan.problem)) return CLARY_OK;
  clary_context& context = *plan->context;
  const std::lock_guard lock(context.mutex);
  CLARY_TRY(context.reserve(plan->workspace_bytes));
  clary::Arena arena(context.workspace);
  const clary::Workspace workspace(plan->plan, context.parallel.threads, arena);
  clary::run_and_report(plan->plan, tensors, workspace, context.parallel);
  return CLARY_OK;
}

void clary_plan_destroy(clary_plan* plan) { delete plan; }

clary_status clary_plan_get_info(const clary_plan* plan, clary_plan_info* info) {
  clary::clear_error();
  if (plan == nullptr) return clary::fail(CLARY_INVALID_ARGUMENT, "plan: is NULL");
  return clary::give(clary::plan_info(plan->plan, plan->workspace_bytes), "clary_plan_info", info);
}

clary_status clary_plan_get_head(const clary_plan* plan, int64_t batch, int64_t head, clary_head_info* info) {
  clary::clear_error();
  if (plan == nullptr) return clary::fail(CLARY_INVALID_ARGUMENT, "plan: is NULL");
  const clary::Problem& p = plan->plan.problem;
  CLARY_TRY(clary::check_index("batch", batch, p.sequences));
  CLARY_TRY(clary::check_index("head", head, p.heads_q));
  const clary::HeadReport& report = plan->plan.head(batch, head);
  const clary_head_info full = {sizeof full, static_cast<clary_precision>(report.precision), report.raises,
                                report.first_error, report.last_error};
  return clary::give(full, "clary_head_info", info);
}

size_t clary_plan_describe(const clary_plan* plan, char* text, size_t capacity) {
  return plan == nullptr ? 0 : clary::describe(plan->plan, plan->workspace_bytes, text, capacity);
}
