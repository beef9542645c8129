// clary demo: what quantised attention does to the Q, K and V of a trained model.
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "case.h"
#include "report.h"

namespace clary::command {
namespace {

struct DemoOptions {
  InputOptions input;
  MachineOptions machine;
  TimingOptions timing{0.3, 0};
};

constexpr const char* kData = "minilm_qkv.safetensors";

// In a checkout: examples/data/; beside an installed command: ../share/clary/.
std::string find_data() {
  std::error_code ignored;
  const std::filesystem::path command = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  std::vector<std::filesystem::path> folders = {"examples/data", command / "../share/clary"};
  for (std::filesystem::path up = command; up.has_relative_path(); up = up.parent_path())
    folders.push_back(up / "examples/data");
  for (const auto& folder : folders)
    if (std::filesystem::exists(folder / kData, ignored)) return (folder / kData).lexically_normal().string();
  throw std::runtime_error(fmt::format("demo: {} not found in examples/data; name it with --input", kData));
}

// What the last lines speak of: int8.
struct Outcome {
  double error = 0, speedup = 0;  // the largest error and the smallest speed-up of all layers
};

const std::vector<clary_precision> kPresets = {CLARY_EXACT, CLARY_BF16X3, CLARY_BF16, CLARY_INT8_F16,
                                               CLARY_INT8,  CLARY_INT4,   CLARY_AUTO};

// Prints one layer's table and what `auto` did.
Outcome show_layer(Case& c, const DemoOptions& options, clary_context* context) {
  make_plan(c, CLARY_EXACT, context);
  const Oracle oracle(c, 0);
  std::vector<CaseErrors> errors;
  std::vector<std::function<void()>> calls;
  std::string choice, reason;
  for (const clary_precision precision : kPresets) {
    const Plan plan = run_plan(c, precision, context);
    errors.push_back(oracle.errors(c));
    calls.push_back([&c, precision, context] { attend(c, precision, context, false); });
    if (precision != CLARY_AUTO) continue;
    choice = heads_text(plan.get(), c.problem);
    reason = describe(plan.get());
  }
  Progress progress("timing " + c.name);
  const std::vector<Timing> timings = time_calls(calls, options.timing, progress);
  Table table({"preset", "error", "cosine", "bits kept", "median", "speed-up"});
  Outcome outcome;
  for (size_t i = 0; i < kPresets.size(); ++i) {
    const double error = errors[i].out.relative_l2, speedup = timings[0].median_s / timings[i].median_s;
    table.add({support::name_of(kPresets[i]), error_text(error), fmt::format("{:.6f}", errors[i].out.cosine),
               bits_text(error), time_text(timings[i].median_s), fmt::format("{:.2f} x", speedup)});
    if (kPresets[i] == CLARY_INT8) outcome = {error, speedup};
  }
  const support::Problem& p = c.problem;
  fmt::print("{}: {} heads, {} tokens, head dimension {}, {}\n{}", c.name, p.heads_q, p.len_q, p.dim_qk,
             support::name_of(p.dtype), table.text());
  fmt::print("auto chose: {}. Its plan:\n", choice);
  for (size_t start = 0; start < reason.size();) {
    const size_t end = std::min(reason.find('\n', start), reason.size());
    fmt::print("    {}\n", reason.substr(start, end - start));
    start = end + 1;
  }
  fmt::print("\n");
  return outcome;
}

int demo(const DemoOptions& options) {
  InputOptions input = options.input;
  if (input.input.empty() && input.q.empty()) input.input = find_data();
  AttentionOptions attention;
  attention.f32_output = true;  // otherwise the rounding to float16 hides what the precise presets do
  std::vector<Case> cases = file_cases(input, attention);
  const Context context = make_context(options.machine);
  fmt::print("{}\n", environment_text(context.get(), threads_of(options.machine)));
  fmt::print("Input: {}\n", input.input);
  fmt::print(
      "error: |output - float64 attention| / |float64 attention|; bits kept: -log2(error); speed-up: over exact.\n\n");
  Outcome worst{0, std::numeric_limits<double>::infinity()};
  for (Case& c : cases) {
    const Outcome outcome = show_layer(c, options, context.get());
    worst = {std::max(worst.error, outcome.error), std::min(worst.speedup, outcome.speedup)};
  }
  fmt::print(
      "What you just saw: attention of a trained model in 8 bits, {:.1f} times as fast as float32 here, {} off "
      "float64.\n",
      worst.speedup, error_text(worst.error));
  return kFine;
}

}  // namespace

void add_demo_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<DemoOptions>();
  CLI::App* const command = app.add_subcommand("demo", "Every preset at work on the Q, K and V of a trained model");
  add_input_options(*command, options->input);
  add_timing_options(*command, options->timing);
  add_machine_options(*command, options->machine);
  command->footer("Example:\n  clary demo --input examples/data/minilm_qkv.safetensors");
  command->callback([options, &action] { action = [options] { return demo(*options); }; });
}

}  // namespace clary::command
