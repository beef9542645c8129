// clary explain: what the library would do with a problem, without doing it.
#include <fmt/format.h>

#include <memory>

#include "case.h"
#include "report.h"

namespace clary::command {
namespace {

struct ExplainOptions {
  std::vector<std::string> problems;
  MachineOptions machine;
  bool json = false;
};

nlohmann::json plan_json(const std::string& problem, const clary_plan_info& info) {
  return {{"problem", problem},
          {"isa", info.isa},
          {"precision", support::name_of(info.precision)},
          {"start", support::name_of(info.start)},
          {"tiles", {{"skipped", info.tiles_skipped}, {"full", info.tiles_full}, {"partial", info.tiles_partial}}},
          {"flops", info.flops},
          {"bytes_moved", info.bytes_moved},
          {"bytes_lower_bound", info.bytes_lower_bound},
          {"workspace_bytes", info.workspace_bytes},
          {"work_items", info.work_items},
          {"key_splits", info.key_splits}};
}

int explain(const ExplainOptions& options) {
  const Context context = make_context(options.machine);
  nlohmann::json results = nlohmann::json::array();
  for (const std::string& problem : join_problems(options.problems)) {
    const DescribedPlan described = described_plan(problem, context.get());
    const clary_plan* const plan = described.plan.get();
    if (options.json)
      results.push_back(plan_json(problem, info_of(plan)));
    else
      fmt::print("{}\n{}\n", problem, describe(plan));
  }
  if (options.json) print_json(results);
  return kFine;
}

}  // namespace

void add_explain_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<ExplainOptions>();
  CLI::App* const command =
      app.add_subcommand("explain", "What Clary would do with a problem: kernel, tiles, FLOPs, bytes, memory");
  command->add_option("PROBLEM", options->problems, "A described problem; several when quoted")->required();
  add_machine_options(*command, options->machine);
  command->add_flag("--json", options->json, "Print JSON");
  command->footer("Example:\n  clary explain hq32 hkv8 lq1 lk32768 d128 bf16 int8");
  command->callback([options, &action] { action = [options] { return explain(*options); }; });
}

}  // namespace clary::command
