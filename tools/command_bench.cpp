// clary bench: speed of described problems, never without the error beside it.
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>

#include "case.h"
#include "report.h"
#include "support/reads.h"

namespace clary::command {
namespace {

struct BenchOptions {
  std::vector<std::string> problems;
  std::string file, precisions, json, beside;
  MachineOptions machine;
  TimingOptions timing;
  int64_t rows = 0;
  double max_error = std::numeric_limits<double>::infinity();
  bool check = false, time = false, peak = true;
  bool reads = false, dense = false, one_thread = false;  // what else is timed beside each call, as `beside` is

  bool more() const { return reads || dense || one_thread || !beside.empty(); }
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
  double workspace_bytes, visible, density;                          // visible: scores
  Timing timing, reads, dense, one_thread, beside;                   // runs == 0: not timed
  double tasks_s = 0, calls_s = 0;                                   // of all threads in tasks, of the calls themselves
  double gops = 0, peak = std::numeric_limits<double>::quiet_NaN();  // GOP/s
  double beside_gops = 0;
};

// What the time would be if work fell with the visible scores, and by which factor it is more.
// NaN where nothing is visible.
double over_density(const Result& r) {
  return r.density > 0 ? r.timing.median_s / (r.density * r.dense.median_s) : std::nan("");
}

// K and V, once.
double bytes_of_keys(const Case& c) { return static_cast<double>(c.tensors.k.size_bytes() + c.tensors.v.size_bytes()); }

class Bench {
 public:
  explicit Bench(const BenchOptions& options)
      : options_(options),
        context_(make_context(options.machine)),
        threads_(threads_of(options.machine)),
        timed_(options.time || !options.check),
        peaks_(clary_context_isa(context_.get()), threads_, 0.2) {
    MachineOptions one = options.machine;
    one.threads = 1;
    if (!options.one_thread) return;
    single_ = make_context(one);
    pool_.emplace(threads_);
    pooled_ = make_context(options.machine, &*pool_);
  }

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
  // Each preset's first call, its error and its peak.
  std::vector<Result> checked(Case& c) {
    const std::vector<clary_precision> precisions =
        options_.precisions.empty() ? std::vector{c.problem.precision} : parse_precisions(options_.precisions);
    make_plan(c, precisions.front(), context_.get());
    // A timed problem is compared on a sample of rows: enough to see a fault, little beside the timing.
    const Oracle oracle(c, options_.rows > 0 ? options_.rows : timed_ ? 64 : 1024);
    const double visible = visible_scores(c), all = all_scores(c), share = all > 0 ? visible / all : 0;
    std::vector<Result> results;
    for (const clary_precision precision : precisions) {
      const Plan plan = run_plan(c, precision, context_.get());
      const clary_plan_info info = info_of(plan.get());
      Result result{precision, info.start, oracle.errors(c), info.workspace_bytes, visible, share, {}, {}, {}, {}, {}};
      if (options_.peak && timed_)
        result.peak =
            peaks_.of(result.start, static_cast<double>(c.problem.dim_qk), static_cast<double>(c.problem.dim_v));
      results.push_back(result);
    }
    return results;
  }

  std::vector<Result> measure(Case& c) {
    Progress progress("timing " + c.name);
    std::vector<Result> results = checked(c);
    if (!timed_) return results;
    std::optional<Case> other;
    if (!options_.beside.empty()) other = described_case(c.name + " " + options_.beside);
    std::vector<std::function<void()>> calls;
    std::vector<Timing*> timings;
    Timing ignored;
    const auto add = [&](Timing& timing, std::function<void()> call) {
      timings.push_back(&timing);
      calls.push_back(std::move(call));
    };
    for (Result& r : results) {
      const clary_precision precision = r.precision;
      add(r.timing, [&c, precision, this] { attend(c, precision, context_.get(), false); });
      if (options_.dense) add(r.dense, [&c, precision, this] { attend_dense(c, precision, context_.get()); });
      if (other) add(r.beside, [&other, precision, this] { attend(*other, precision, context_.get(), false); });
      if (!single_) continue;
      add(r.one_thread, [&c, precision, this] { attend(c, precision, single_.get(), false); });
      add(ignored, [&c, &r, this] { attend_measured(c, r); });
    }
    Timing reads;
    std::optional<support::Reads> reader;
    if (options_.reads) {
      const support::Tensor &k = c.tensors.k, &v = c.tensors.v;
      reader.emplace(std::vector{memory_of(k), memory_of(v)}, threads_);
      add(reads, [&reader] { reader->sum(); });
    }
    const std::vector<Timing> measured = time_calls(calls, options_.timing, progress);
    for (size_t i = 0; i < measured.size(); ++i) *timings[i] = measured[i];
    const double other_operations = other ? operations(*other, visible_scores(*other)) : 0;
    for (Result& r : results) {
      r.gops = operations(c, r.visible) / r.timing.median_s * 1e-9;
      r.reads = reads;
      if (other) r.beside_gops = other_operations / r.beside.median_s * 1e-9;
    }
    return results;
  }

  void attend_measured(Case& c, Result& r) {
    const double before_s = pool_->busy_s();
    const auto start = std::chrono::steady_clock::now();
    attend(c, r.precision, pooled_.get(), false);
    r.calls_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    r.tasks_s += pool_->busy_s() - before_s;
  }

  // Share of the time of all threads in which they work, over all calls.
  double busy(const Result& r) const { return r.tasks_s / (threads_ * r.calls_s); }

  static support::Reads::Memory memory_of(const support::Tensor& tensor) {
    return {static_cast<const std::byte*>(tensor.data()), tensor.size_bytes()};
  }

  std::vector<std::string> header() const {
    std::vector<std::string> columns = {"preset"};
    if (timed_) columns.insert(columns.end(), {"median", "p10", "p90", "GOP/s", "of peak"});
    if (options_.reads) columns.insert(columns.end(), {"GB/s", "of plain reads"});
    if (options_.dense) columns.insert(columns.end(), {"density", "over density x dense"});
    if (options_.one_thread) columns.insert(columns.end(), {"x 1 thread", "busy"});
    if (!options_.beside.empty()) columns.push_back("x " + options_.beside);
    if (timed_) columns.insert(columns.end(), {"runs", "workspace"});
    columns.insert(columns.end(), {"rel. L2", "rel. L1", "RMSE", "cosine"});
    return columns;
  }

  std::vector<std::string> row(const Case& c, const Result& r) const {
    std::vector<std::string> cells = {support::name_of(r.precision)};
    if (r.start != r.precision) cells[0] += fmt::format(" ({})", support::name_of(r.start));
    const auto add = [&](std::vector<std::string> more) { cells.insert(cells.end(), more.begin(), more.end()); };
    if (timed_)
      add({time_text(r.timing.median_s), time_text(r.timing.p10_s), time_text(r.timing.p90_s),
           fmt::format("{:.4g}", r.gops), std::isnan(r.peak) ? "-" : fmt::format("{:.0f} %", 100 * r.gops / r.peak)});
    if (options_.reads)
      add({fmt::format("{:.3g}", bytes_of_keys(c) / r.timing.median_s * 1e-9),
           fmt::format("{:.0f} %", 100 * r.reads.median_s / r.timing.median_s)});
    if (options_.dense)
      add({fmt::format("{:.3f}", r.density), r.density > 0 ? fmt::format("{:.3f}", over_density(r)) : "-"});
    if (options_.one_thread)
      add({fmt::format("{:.2f}", r.one_thread.median_s / r.timing.median_s), fmt::format("{:.1f} %", 100 * busy(r))});
    if (!options_.beside.empty()) add({fmt::format("{:.3f}", r.gops / r.beside_gops)});
    if (timed_) add({std::to_string(r.timing.runs), bytes_text(r.workspace_bytes)});
    add({error_text(r.errors.out.relative_l2), error_text(r.errors.out.relative_l1),
         fmt::format("{:.1e}", r.errors.out.rmse), fmt::format("{:.6f}", r.errors.out.cosine)});
    return cells;
  }

  void print(const Case& c, const std::vector<Result>& results) const {
    Table table(header());
    for (const Result& r : results) table.add(row(c, r));
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
    result["visible_scores"] = r.visible;
    result["workspace_bytes"] = r.workspace_bytes;
    result["gops"] = r.gops;
    if (!std::isnan(r.peak)) result["peak_gops"] = r.peak, result["peak_share"] = r.gops / r.peak;
    if (options_.reads)
      result["reads"] = {{"bytes", bytes_of_keys(c)},
                         {"time", timing_json(r.reads)},
                         {"gb_per_s", bytes_of_keys(c) / r.timing.median_s * 1e-9},
                         {"share", r.reads.median_s / r.timing.median_s}};
    if (options_.dense) result["dense"] = {{"time", timing_json(r.dense)}, {"density", r.density}};
    if (options_.dense && r.density > 0) result["dense"]["over_density"] = over_density(r);
    if (options_.one_thread)
      result["one_thread"] = {{"time", timing_json(r.one_thread)},
                              {"speedup", r.one_thread.median_s / r.timing.median_s},
                              {"busy", busy(r)}};
    if (!options_.beside.empty())
      result["beside"] = {{"words", options_.beside},
                          {"time", timing_json(r.beside)},
                          {"gops", r.beside_gops},
                          {"ratio", r.gops / r.beside_gops}};
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
  std::optional<support::BusyPool> pool_;
  Context context_, single_, pooled_;  // of one thread, and of pool_: where asked for
  int threads_;
  bool timed_, good_ = true;
  Peaks peaks_;
};

int run_bench(const BenchOptions& options) {
  if (options.file.empty() == options.problems.empty())
    throw std::runtime_error("bench: give either a described problem or --file");
  if (options.check && !options.time && options.more())
    throw std::runtime_error(
        "--check: takes no times; --reads, --dense, --one-thread and --beside need --time with it");
  const std::vector<std::string> problems =
      options.file.empty() ? join_problems(options.problems) : read_problems(options.file);
  // Before the first one takes its time.
  for (const std::string& problem : problems) {
    support::parse_problem(problem);
    if (!options.beside.empty()) support::parse_problem(problem + " " + options.beside);
  }
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
  command->add_flag("--reads", options->reads,
                    "Time a plain sum over K and V as well: GB/s, and the share of that speed");
  command->add_flag("--dense", options->dense,
                    "Time each problem without causality, window and mask as well: time over density x dense");
  command->add_flag(
      "--one-thread", options->one_thread,
      "Time each on one thread as well: the speed-up over it, and the share of time that all threads work");
  command
      ->add_option("--beside", options->beside,
                   "Time each problem with these words added as well, such as lk4096: GOP/s over its")
      ->type_name("WORDS");
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
