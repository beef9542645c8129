// clary run: attention over Q, K and V from files.
#include <fmt/format.h>

#include <chrono>
#include <memory>

#include "case.h"
#include "report.h"
#include "support/npy.h"

namespace clary::command {
namespace {

struct RunOptions {
  InputOptions input;
  AttentionOptions attention;
  MachineOptions machine;
  std::string output, lse;
  bool explain = false, json = false;
};

int run_files(const RunOptions& options) {
  if (options.input.input.empty() && options.input.q.empty())
    throw std::runtime_error("run: give --input FILE.safetensors, or --q, --k and --v");
  std::vector<Case> cases = file_cases(options.input, options.attention);
  if (cases.size() > 1) {
    std::string names;
    for (const Case& c : cases) names += " " + support::quote(c.name);
    throw std::runtime_error("--prefix: needed, because " + options.input.input + " holds several:" + names);
  }
  Case& c = cases.front();
  const Context context = make_context(options.machine);
  const auto start = std::chrono::steady_clock::now();
  const Plan plan = run_plan(c, c.problem.precision, context.get());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  support::write_npy(options.output, c.tensors.out);
  if (!options.lse.empty()) support::write_npy(options.lse, c.tensors.lse);
  const std::string heads = heads_text(plan.get(), c.problem);
  if (options.json) {
    nlohmann::json result = {{"environment", environment_json(context.get(), threads_of(options.machine))},
                             {"problem", support::to_string(c.problem)},
                             {"output", options.output},
                             {"precision", support::name_of(c.problem.precision)},
                             {"seconds", seconds},
                             {"heads", heads}};
    if (options.explain) result["plan"] = describe(plan.get());
    print_json(result);
  } else {
    fmt::print("{}: {}, {}, {}, {}\n", options.output, c.tensors.out.dtype(), heads, clary_context_isa(context.get()),
               time_text(seconds));
    if (options.explain) fmt::print("{}\n", describe(plan.get()));
  }
  return kFine;
}

}  // namespace

void add_run_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<RunOptions>();
  CLI::App* const command = app.add_subcommand("run", "Attention over Q, K and V from files");
  add_input_options(*command, options->input);
  command->add_option("--output", options->output, "Where O goes: float16 for float16 inputs, otherwise float32")
      ->required()
      ->type_name("FILE.npy")
      ->group("Output");
  command->add_option("--lse", options->lse, "Where the log-sum-exp of each row goes, float32 [B, Hq, Lq]")
      ->type_name("FILE.npy")
      ->group("Output");
  command
      ->add_option("--precision", options->attention.precision,
                   "exact, bf16x3, bf16, int8_f16, int8, int4 or auto (default)")
      ->check(CLI::IsMember({"exact", "bf16x3", "bf16", "int8_f16", "int8", "int4", "auto"}))
      ->type_name("NAME")
      ->group("Attention");
  add_attention_options(*command, options->attention);
  add_machine_options(*command, options->machine);
  command->add_flag("--explain", options->explain, "Print the plan: kernel, tiles, memory, heads");
  command->add_flag("--json", options->json, "Print JSON");
  command->footer(
      "Metadata of a .safetensors file may give layout and softmax_scale; the options go before them.\n"
      "Example:\n  clary run --q q.npy --k k.npy --v v.npy --causal bottom_right --precision int8 --output o.npy");
  command->callback([options, &action] { action = [options] { return run_files(*options); }; });
}

}  // namespace clary::command
