// clary check: how far each preset is from float64 attention.
#include <fmt/format.h>

#include <limits>
#include <memory>

#include "case.h"
#include "report.h"

namespace clary::command {
namespace {

struct CheckOptions {
  InputOptions input;
  AttentionOptions attention;
  MachineOptions machine;
  std::vector<std::string> problems;
  std::string precisions;
  int64_t rows = 1024;
  double max_error = std::numeric_limits<double>::infinity();
  bool json = false;
};

// One case at every precision; false when one is over the limit.
bool check_case(Case& c, const std::vector<clary_precision>& precisions, const CheckOptions& options,
                clary_context* context, Progress& progress, nlohmann::json& results) {
  make_plan(c, precisions.front(), context);  // refuses what does not fit together before the oracle looks at it
  const Oracle oracle(c, options.rows);
  Table table({"preset", "rel. L2", "rel. L1", "RMSE", "cosine", "bits kept", "LSE max |d|", ""});
  std::string notes;
  bool good = true;
  for (size_t i = 0; i < precisions.size(); ++i) {
    const Plan plan = run_plan(c, precisions[i], context);
    const CaseErrors errors = oracle.errors(c);
    // Written so that a NaN is over every limit.
    const bool within = errors.out.relative_l2 <= options.max_error && errors.out.mismatched_nonfinite == 0;
    good = good && within;
    const std::string heads = heads_text(plan.get(), c.problem);
    table.add({support::name_of(precisions[i]), error_text(errors.out.relative_l2), error_text(errors.out.relative_l1),
               fmt::format("{:.2e}", errors.out.rmse), fmt::format("{:.7f}", errors.out.cosine),
               bits_text(errors.out.relative_l2), fmt::format("{:.1e}", errors.lse.max_abs),
               errors.out.mismatched_nonfinite ? "NON-FINITE"
               : within                        ? ""
                                               : "TOO LARGE"});
    if (precisions[i] == CLARY_AUTO || c.problem.guard > 0)
      notes += fmt::format("  {}: {}\n", support::name_of(precisions[i]), heads);
    nlohmann::json entry = {
        {"case", c.name}, {"precision", support::name_of(precisions[i])}, {"heads", heads}, {"within", within}};
    entry["errors"] = errors_json(errors);
    entry["errors"]["lse_max_abs"] = errors.lse.max_abs;
    results.push_back(entry);
    progress.update(static_cast<double>(i + 1) / static_cast<double>(precisions.size()));
  }
  if (!options.json) fmt::print("{} ({} rows against float64)\n{}{}\n", c.name, oracle.rows(), table.text(), notes);
  return good;
}

int check_all(const CheckOptions& options) {
  const bool files = !options.input.input.empty() || !options.input.q.empty();
  if (files == !options.problems.empty())
    throw std::runtime_error("check: give either files (--input, or --q, --k and --v) or a described problem");
  const std::vector<std::string> problems = join_problems(options.problems);
  for (const std::string& problem : problems) support::parse_problem(problem);
  std::vector<Case> loaded = files ? file_cases(options.input, options.attention) : std::vector<Case>();
  const Context context = make_context(options.machine);
  const std::vector<clary_precision> precisions =
      parse_precisions(options.precisions.empty() ? "exact,bf16x3,bf16,int8_f16,int8,int4,auto" : options.precisions);
  if (!options.json) fmt::print("{}\n\n", environment_text(context.get(), threads_of(options.machine)));
  bool good = true;
  nlohmann::json results = nlohmann::json::array();
  const auto one = [&](Case& c) {
    Progress progress("checking " + c.name);
    good = check_case(c, precisions, options, context.get(), progress, results) && good;
  };
  for (Case& c : loaded) one(c);
  for (const std::string& problem : problems) {
    Case c = described_case(problem);
    one(c);
  }
  if (options.json)
    print_json({{"environment", environment_json(context.get(), threads_of(options.machine))}, {"results", results}});
  if (!good) fmt::print(stderr, "clary: check failed: an error exceeds --max-error, or non-finite values differ\n");
  return good ? kFine : kCheckFailed;
}

}  // namespace

void add_check_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<CheckOptions>();
  CLI::App* const command =
      app.add_subcommand("check", "Error of each preset against float64, on files or on a described problem");
  command->add_option("PROBLEM", options->problems,
                      "A described problem, such as: hq8 l1024 d64 causal; several when quoted");
  add_input_options(*command, options->input);
  add_precision_list(*command, options->precisions, "all");
  command->add_option("--rows", options->rows, "Rows to compare, spread evenly (default 1024; 0 = all)")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  command->add_option("--max-error", options->max_error, "Exit with 1 when a relative L2 error exceeds this")
      ->check(CLI::NonNegativeNumber)
      ->type_name("E");
  add_attention_options(*command, options->attention);
  add_machine_options(*command, options->machine);
  command->add_flag("--json", options->json, "Print JSON");
  command->footer(
      "The options of the group Attention go with files; a described problem says all of that itself: guard0.01, "
      "scale0.5.\n"
      "Example:\n  clary check hq8 hkv2 l1024 d64 causal data=outliers --precision int8,int4 --max-error 0.02");
  command->callback([options, &action, command] {
    for (const CLI::Option* option : command->get_options())
      if (option->get_group() == "Attention" && option->count() > 0 && !options->problems.empty())
        throw CLI::ValidationError(option->get_name(), "goes with files; a described problem says this itself");
    action = [options] { return check_all(*options); };
  });
}

}  // namespace clary::command
