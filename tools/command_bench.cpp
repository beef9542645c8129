// clary bench: speed of described problems, never without the error beside it.
#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <memory>

#include "case.h"
#include "report.h"

namespace clary::command {
namespace {

struct BenchOptions {
  std::vector<std::string> problems;
  std::string file, precisions, json;
  MachineOptions machine;
  TimingOptions timing;
  int64_t rows = 0;
  double max_error = std::numeric_limits<double>::infinity();
  bool check = false, time = false, peak = true;
};

// A problem per line; '#' begins a comment.
std::vector<std::string> read_problems(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("--file: cannot read " + path);
  std::vector<std::string> result;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    line.resize(std::min(line.find('#'), line.size()));
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back()))) line.pop_back();
    if (line.empty()) continue;
    try {
      support::parse_problem(line);
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(fmt::format("--file: {}:{}: {}", path, number, error.what()));
    }
    result.push_back(line);
  }
  if (result.empty()) throw std::runtime_error("--file: no problem in " + path);
  return result;
}

struct Result {
  clary_precision precision, start;
  CaseErrors errors;
  Timing timing;                                                     // runs == 0: not timed
  double gops = 0, peak = std::numeric_limits<double>::quiet_NaN();  // GOP/s
};

class Bench {
 public:
  explicit Bench(const BenchOptions& options)
      : options_(options),
        context_(make_context(options.machine)),
        threads_(threads_of(options.machine)),
        timed_(options.time || !options.check),
        peaks_(clary_context_isa(context_.get()), threads_, 0.2) {}

  int run(const std::vector<std::string>& problems) {
    const bool text = options_.json != "-";
    if (text) fmt::print("{}\n\n", environment_text(context_.get(), threads_));
    nlohmann::json results = nlohmann::json::array();
    for (const std::string& problem : problems) {
      Case c = described_case(problem);
      const std::vector<Result> measured = measure(c);
      if (text) print(c, measured);
      for (const Result& result : measured) {
        results.push_back(to_json(c, result));
        good_ =
            good_ && result.errors.out.relative_l2 <= options_.max_error && result.errors.out.mismatched_nonfinite == 0;
      }
    }
    if (!options_.json.empty())
      write_json({{"environment", environment_json(context_.get(), threads_)}, {"results", results}});
    if (!good_) fmt::print(stderr, "clary: check failed: an error exceeds --max-error, or non-finite values differ\n");
    return good_ ? kFine : kCheckFailed;
  }

 private:
  std::vector<Result> measure(Case& c) {
    const std::vector<clary_precision> precisions =
        options_.precisions.empty() ? std::vector{c.problem.precision} : parse_precisions(options_.precisions);
    Progress progress("timing " + c.name);
    make_plan(c, precisions.front(), context_.get());
    // A timed problem is compared on a sample of rows: enough to see a fault, little beside the timing.
    const Oracle oracle(c, options_.rows > 0 ? options_.rows : timed_ ? 64 : 1024);
    const double work = operations(c);
    std::vector<Result> results;
    std::vector<std::function<void()>> calls;
    for (const clary_precision precision : precisions) {
      const Plan plan = run_plan(c, precision, context_.get());
      Result result{precision, info_of(plan.get()).start, oracle.errors(c), {}};
      if (options_.peak && timed_)
        result.peak =
            peaks_.of(result.start, static_cast<double>(c.problem.dim_qk), static_cast<double>(c.problem.dim_v));
      results.push_back(result);
      calls.push_back([&c, precision, this] { attend(c, precision, context_.get(), false); });
    }
    if (!timed_) return results;
    const std::vector<Timing> timings = time_calls(calls, options_.timing, progress);
    for (size_t i = 0; i < results.size(); ++i) {
      results[i].timing = timings[i];
      results[i].gops = work / timings[i].median_s * 1e-9;
    }
    return results;
  }

  void print(const Case& c, const std::vector<Result>& results) const {
    std::vector<std::string> header = {"preset"};
    if (timed_) header.insert(header.end(), {"median", "p10", "p90", "GOP/s", "of peak", "runs"});
    header.insert(header.end(), {"rel. L2", "rel. L1", "RMSE", "cosine"});
    Table table(header);
    for (const Result& r : results) {
      std::vector<std::string> row = {support::name_of(r.precision)};
      if (r.start != r.precision) row[0] += fmt::format(" ({})", support::name_of(r.start));
      if (timed_)
        row.insert(row.end(), {time_text(r.timing.median_s), time_text(r.timing.p10_s), time_text(r.timing.p90_s),
                               fmt::format("{:.4g}", r.gops),
                               std::isnan(r.peak) ? "-" : fmt::format("{:.0f} %", 100 * r.gops / r.peak),
                               std::to_string(r.timing.runs)});
      row.insert(row.end(), {error_text(r.errors.out.relative_l2), error_text(r.errors.out.relative_l1),
                             fmt::format("{:.1e}", r.errors.out.rmse), fmt::format("{:.6f}", r.errors.out.cosine)});
      table.add(row);
    }
    fmt::print("{} (error of {} rows)\n{}\n", c.name, results.front().errors.rows, table.text());
    std::fflush(stdout);
  }

  nlohmann::json to_json(const Case& c, const Result& r) const {
    nlohmann::json result = {{"problem", c.name},
                             {"precision", support::name_of(r.precision)},
                             {"start", support::name_of(r.start)},
                             {"errors", errors_json(r.errors)}};
    if (!timed_) return result;
    result["time"] = timing_json(r.timing);
    result["visible_scores"] = visible_scores(c);
    result["gops"] = r.gops;
    if (!std::isnan(r.peak)) result["peak_gops"] = r.peak, result["peak_share"] = r.gops / r.peak;
    return result;
  }

  void write_json(const nlohmann::json& json) const {
    if (options_.json == "-") {
      print_json(json);
      return;
    }
    std::ofstream file(options_.json);
    file << json_text(json) << "\n";
    file.close();
    if (!file) throw std::runtime_error("--json: cannot write " + options_.json);
  }

  const BenchOptions& options_;
  Context context_;
  int threads_;
  bool timed_, good_ = true;
  Peaks peaks_;
};

int run_bench(const BenchOptions& options) {
  if (options.file.empty() == options.problems.empty())
    throw std::runtime_error("bench: give either a described problem or --file");
  const std::vector<std::string> problems =
      options.file.empty() ? join_problems(options.problems) : read_problems(options.file);
  for (const std::string& problem : problems) support::parse_problem(problem);  // before the first one takes its time
  return Bench(options).run(problems);
}

}  // namespace

void add_bench_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<BenchOptions>();
  CLI::App* const command = app.add_subcommand("bench", "Speed of described problems, with their error");
  command->add_option("PROBLEM", options->problems,
                      "A described problem, such as: hq32 hkv8 l4096 d128 causal; several when quoted");
  command->add_option("--file", options->file, "Problems from a file, one per line")->type_name("FILE");
  command->add_flag("--time", options->time, "Time, and compare a few rows with float64 (default)");
  command->add_flag("--check", options->check, "Compare with float64 only; with --time both");
  add_precision_list(*command, options->precisions, "what the problem says, or auto");
  add_timing_options(*command, options->timing);
  command->add_option("--rows", options->rows, "Rows to compare with float64 (default 64, for --check alone 1024)")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command->add_option("--max-error", options->max_error, "Exit with 1 when a relative L2 error exceeds this")
      ->check(CLI::NonNegativeNumber)
      ->type_name("E");
  command->add_flag("--peak,!--no-peak", options->peak,
                    "Measure the machine's peaks and show the share reached (default)");
  command->add_option("--json", options->json, "Write JSON to a file, - for standard output instead of the table")
      ->type_name("FILE");
  add_machine_options(*command, options->machine);
  command->footer(
      "A time is that of one whole call: smoothing, quantisation and packing are in it. GOP/s count 2 operations per\n"
      "multiply-add of the scores that queries may see.\n"
      "Example:\n  clary bench hq32 hkv8 l4096 d128 causal bf16 --precision exact,int8 --threads 1");
  command->callback([options, &action] { action = [options] { return run_bench(*options); }; });
}

}  // namespace clary::command
