#include "case.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <thread>

#include "support/npy.h"
#include "support/safetensors.h"

namespace clary::command {

using support::Problem;
using support::Safetensors;
using support::Tensor;
using support::Tensors;

clary_attention_params Case::params(clary_precision precision) const {
  Problem changed = problem;
  changed.precision = precision;
  return support::make_params(changed, tensors);
}

// Linux grants memory that it does not have and ends the program later; a line of text is better. A bound from below:
// Q, K, V, the output and a mask.
static void require_memory(const Problem& p) {
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  double bytes = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const double len_q = number(support::length_q(p, b)), len_k = number(support::length_k(p, b));
    const double elements = number(p.heads_q) * len_q * number(p.dim_qk + p.dim_v) +
                            number(p.heads_kv) * len_k * number(p.dim_qk + p.dim_v);
    bytes += elements * (p.dtype == support::DType::f32 ? 4 : 2);
    if (p.mask == support::MaskKind::none || p.mask == support::MaskKind::key_padding) continue;
    const double rows = (p.mask_broadcast & 2 ? 1 : number(p.heads_q)) * (p.mask_broadcast & 4 ? 1 : len_q);
    bytes += rows * (p.mask_broadcast & 8 ? 1 : len_k) / (p.mask_broadcast & 1 ? number(p.batch) : 1);
  }
  const double there = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  if (bytes > 0.9 * there)
    throw std::runtime_error(fmt::format("the tensors of {} take {:.3g} GiB; this machine has {:.3g}",
                                         support::quote(support::to_string(p)), bytes / 0x1p30, there / 0x1p30));
}

Case described_case(const std::string& description) {
  Case result{description, support::parse_problem(description), {}};
  require_memory(result.problem);
  result.tensors = support::make_tensors(result.problem);
  return result;
}

DescribedPlan described_plan(const std::string& description, clary_context* context) {
  Problem problem = support::parse_problem(description);
  const std::array<int64_t, 2> dims = {problem.dim_qk, problem.dim_v};
  problem.dim_qk = problem.dim_v = 1;  // masks, slopes and sinks do not depend on the head dimensions
  require_memory(problem);
  DescribedPlan result{std::make_unique<Tensors>(support::make_tensors(problem)), nullptr};
  const Tensors& tensors = *result.tensors;
  alignas(64) static std::byte somewhere[64];  // plans keep shapes, not data
  const auto widened = [](const Tensor& tensor, std::vector<int64_t>& shape, int64_t dim) {
    shape = tensor.shape();
    shape.back() = dim;
    clary_tensor view = *tensor.view();
    view.data = somewhere;
    view.shape = shape.data();
    view.strides = nullptr;
    return view;
  };
  std::vector<int64_t> shapes[4];
  const clary_tensor q = widened(tensors.q, shapes[0], dims[0]), k = widened(tensors.k, shapes[1], dims[0]);
  const clary_tensor v = widened(tensors.v, shapes[2], dims[1]), out = widened(tensors.out, shapes[3], dims[1]);
  const clary_attention_params params = support::make_params(problem, tensors);
  clary_plan* plan = nullptr;
  check(clary_plan_create(&q, &k, &v, &out, nullptr, &params, context, &plan));
  result.plan.reset(plan);
  return result;
}

// ---- files ---------------------------------------------------------------------------------------------------------

namespace {

// A number in a file's metadata, by the rules of the grammar of problems.
void apply_metadata(const std::map<std::string, std::string>& metadata, const AttentionOptions& flags,
                    Problem& problem) {
  const auto layout = metadata.find("layout"), scale = metadata.find("softmax_scale");
  if (flags.layout.empty() && layout != metadata.end()) {
    if (layout->second != "bhsd" && layout->second != "bshd")
      throw std::runtime_error("--input: metadata 'layout' is " + support::quote(layout->second) +
                               ", expected bhsd or bshd");
    problem.layout = layout->second == "bshd" ? CLARY_BSHD : CLARY_BHSD;
  }
  if (flags.scale.empty() && scale != metadata.end()) {
    const std::string& text = scale->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), problem.softmax_scale);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(problem.softmax_scale))
      throw std::runtime_error("--input: metadata 'softmax_scale' is " + support::quote(text) + ", expected a number");
    problem.has_scale = true;
  }
}

// Shapes and types of the loaded tensors into the problem, and memory for the result. What does not fit together is
// left for the library to refuse: its message names the tensor.
void complete(Case& c, bool f32_output) {
  Problem& p = c.problem;
  Tensors& t = c.tensors;
  const std::pair<const char*, const Tensor*> inputs[] = {{"q", &t.q}, {"k", &t.k}, {"v", &t.v}};
  for (const auto& [name, tensor] : inputs) {
    if (tensor->shape().size() != 4)
      throw std::runtime_error(fmt::format("{}: {} dimensions, expected 4", name, tensor->shape().size()));
    if (tensor->dtype() == "bool")
      throw std::runtime_error(std::string(name) + ": bool or uint8, expected a float type");
  }
  const bool bhsd = p.layout == CLARY_BHSD;
  const size_t head = bhsd ? 1 : 2, length = bhsd ? 2 : 1;
  p.batch = t.q.shape()[0];
  p.heads_q = t.q.shape()[head], p.heads_kv = t.k.shape()[head];
  p.len_q = t.q.shape()[length], p.len_k = t.k.shape()[length];
  p.dim_qk = t.q.shape()[3], p.dim_v = t.v.shape()[3];
  p.dtype = t.q.dtype() == "f32"   ? support::DType::f32
            : t.q.dtype() == "f16" ? support::DType::f16
                                   : support::DType::bf16;
  p.out_f32 = f32_output || p.dtype != support::DType::f16;
  p.alibi = !t.alibi_slopes.empty();
  p.sinks = !t.sinks.empty();
  if (!t.mask.empty()) p.mask = t.mask.dtype() == "bool" ? support::MaskKind::boolean : support::MaskKind::additive;
  std::vector<int64_t> out_shape = t.q.shape();
  out_shape[3] = p.dim_v;
  t.out = Tensor(p.out_f32 ? "f32" : "f16", out_shape);
  t.lse = Tensor("f32", {p.batch, p.heads_q, p.len_q});
}

// The prefixes P for which P.q, P.k and P.v exist; "" stands for plain q, k, v.
std::vector<std::string> prefixes_of(const Safetensors& file) {
  std::vector<std::string> result;
  for (const Safetensors::Entry& entry : file.entries()) {
    const std::string& name = entry.name;
    if (name != "q" && !(name.size() > 2 && name.compare(name.size() - 2, 2, ".q") == 0)) continue;
    const std::string stem = name.substr(0, name.size() - 1);
    if (file.find(stem + "k") && file.find(stem + "v"))
      result.push_back(stem.empty() ? "" : stem.substr(0, stem.size() - 1));
  }
  std::sort(result.begin(), result.end());
  return result;
}

Tensor read_optional(const std::string& path) { return path.empty() ? Tensor() : support::read_npy(path); }

}  // namespace

std::vector<Case> file_cases(const InputOptions& input, const AttentionOptions& attention) {
  std::vector<Case> cases;
  Problem problem = problem_of(attention);
  if (input.input.empty()) {
    Case& c = cases.emplace_back(Case{input.q, problem, {}});
    c.tensors.q = support::read_npy(input.q);
    c.tensors.k = support::read_npy(input.k);
    c.tensors.v = support::read_npy(input.v);
  } else {
    const Safetensors file(input.input);
    apply_metadata(file.metadata(), attention, problem);
    const std::vector<std::string> all = prefixes_of(file);
    for (const std::string& prefix : all) {
      if (!input.prefix.empty() && prefix != input.prefix) continue;
      Case& c = cases.emplace_back(Case{prefix.empty() ? "q, k, v" : prefix, problem, {}});
      const std::string stem = prefix.empty() ? "" : prefix + ".";
      c.tensors.q = file.load(*file.find(stem + "q"));
      c.tensors.k = file.load(*file.find(stem + "k"));
      c.tensors.v = file.load(*file.find(stem + "v"));
    }
    if (cases.empty()) {
      std::string there;
      for (const std::string& prefix : all) there += (there.empty() ? "; there are: " : ", ") + prefix;
      throw std::runtime_error(fmt::format("{}: {}: no tensors {}.q, .k and .v in {}{}",
                                           input.prefix.empty() ? "--input" : "--prefix", support::quote(input.prefix),
                                           input.prefix, input.input, there));
    }
  }
  for (Case& c : cases) {
    c.tensors.mask = read_optional(attention.mask);
    c.tensors.alibi_slopes = read_optional(attention.alibi_slopes);
    c.tensors.sinks = read_optional(attention.sinks);
    complete(c, attention.f32_output);
  }
  return cases;
}

// ---- running -------------------------------------------------------------------------------------------------------

int usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

int threads_of(const MachineOptions& options) { return options.threads > 0 ? options.threads : usable_cores(); }

Context make_context(const MachineOptions& options, support::BusyPool* pool) {
  clary_context_options wanted;
  clary_context_options_init(&wanted);
  if (options.threads > 0) wanted.threads = options.threads;
  if (!options.isa.empty()) wanted.isa = options.isa.c_str();
  if (pool != nullptr) wanted.parallel_for = support::BusyPool::run, wanted.parallel_user = pool;
  clary_context* context = nullptr;
  check(clary_context_create(&wanted, &context));
  return Context(context);
}

static void attend(const Tensors& t, const clary_attention_params& params, clary_context* context, bool with_lse) {
  check(clary_attention(t.q.view(), t.k.view(), t.v.view(), t.out.view(), with_lse ? t.lse.view() : nullptr, &params,
                        context));
}

void attend(Case& c, clary_precision precision, clary_context* context, bool with_lse) {
  attend(c.tensors, c.params(precision), context, with_lse);
}

void attend_dense(Case& c, clary_precision precision, clary_context* context) {
  clary_attention_params params = c.params(precision);
  params.causal = CLARY_NOT_CAUSAL;
  params.window_left = params.window_right = -1;
  params.mask = nullptr;
  attend(c.tensors, params, context, false);
}

Plan make_plan(Case& c, clary_precision precision, clary_context* context) {
  const clary_attention_params params = c.params(precision);
  const Tensors& t = c.tensors;
  clary_plan* plan = nullptr;
  check(clary_plan_create(t.q.view(), t.k.view(), t.v.view(), t.out.view(), t.lse.view(), &params, context, &plan));
  return Plan(plan);
}

Plan run_plan(Case& c, clary_precision precision, clary_context* context) {
  Plan plan = make_plan(c, precision, context);
  Tensors& t = c.tensors;
  check(
      clary_plan_run(plan.get(), t.q.data(), t.k.data(), t.v.data(), t.out.data(), static_cast<float*>(t.lse.data())));
  return plan;
}

Oracle::Oracle(const Case& c, int64_t row_limit)
    : rows_(support::rows_of(c.problem, row_limit)),
      exact_(support::exact_attention(c.problem, c.tensors, rows_, usable_cores())) {}

CaseErrors Oracle::errors(const Case& c) const {
  return {support::output_errors(c.problem, c.tensors, rows_, exact_),
          support::lse_errors(c.problem, c.tensors, rows_, exact_), rows()};
}

}  // namespace clary::command
