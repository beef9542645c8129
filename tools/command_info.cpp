// clary info: the machine as Clary sees it.
#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <memory>

#include "case.h"
#include "report.h"

namespace clary::command {
namespace {

struct InfoOptions {
  bool measure = false, json = false;
};

struct Cache {
  std::string name, size;
  int sharers = 1;  // cores
};

std::string first_word(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

// "0-3,8" names five cores.
int count_cores(const std::string& list) {
  int count = 0;
  for (size_t start = 0; start < list.size();) {
    const size_t end = std::min(list.find(',', start), list.size());
    int first = 0, last = 0;
    const int read = std::sscanf(list.substr(start, end - start).c_str(), "%d-%d", &first, &last);
    count += read == 2 ? last - first + 1 : read == 1 ? 1 : 0;
    start = end + 1;
  }
  return count;
}

// As Linux tells them for the first core; none where it does not.
std::vector<Cache> caches() {
  std::vector<Cache> result;
  for (int i = 0;; ++i) {
    const std::string folder = fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/", i);
    const std::string level = first_word(folder + "level"), type = first_word(folder + "type");
    if (level.empty()) return result;
    const char* const kind = type == "Data" ? "d" : type == "Instruction" ? "i" : "";
    result.push_back(
        {"L" + level + kind, first_word(folder + "size"), count_cores(first_word(folder + "shared_cpu_list"))});
  }
}

// GOP/s per thread of f32, bf16 and INT8; NaN where the instruction set has none.
struct IsaPeaks {
  double f32, bf16, int8;
};

constexpr double kSecondsPerPeak = 0.2;

IsaPeaks measure(const char* isa, int threads) {
  Peaks peaks(isa, threads, kSecondsPerPeak);
  return {peaks.get(CLARY_PEAK_F32), peaks.get(CLARY_PEAK_BF16), peaks.get(CLARY_PEAK_INT8)};
}

std::string rate_text(double rate) { return std::isnan(rate) ? "-" : fmt::format("{:.4g}", rate); }

nlohmann::json rate_json(double rate) { return std::isnan(rate) ? nlohmann::json() : nlohmann::json(rate); }

nlohmann::json peaks_json(const IsaPeaks& peaks) {
  return {
      {"f32_gops", rate_json(peaks.f32)}, {"bf16_gops", rate_json(peaks.bf16)}, {"int8_gops", rate_json(peaks.int8)}};
}

int info_json(const InfoOptions& options, const std::string& chosen) {
  nlohmann::json result = {
      {"version", clary_version()}, {"cpu", clary_cpu_name()}, {"cores", usable_cores()}, {"isa", chosen}};
  for (const Cache& cache : caches())
    result["caches"].push_back({{"name", cache.name}, {"size", cache.size}, {"shared_by_cores", cache.sharers}});
  for (int i = 0; i < clary_isa_count(); ++i) {
    nlohmann::json isa = {{"name", clary_isa_name(i)}, {"supported", clary_isa_supported(i) == 1}};
    if (options.measure && clary_isa_supported(i)) isa["peak_one_thread"] = peaks_json(measure(clary_isa_name(i), 1));
    result["instruction_sets"].push_back(isa);
  }
  if (options.measure) {
    result["peak_all_cores"] = peaks_json(measure(chosen.c_str(), usable_cores()));
    result["read_gb_per_s"] = rate_json(Peaks(chosen, usable_cores(), kSecondsPerPeak).get(CLARY_PEAK_READ));
  }
  print_json(result);
  return kFine;
}

int info(const InfoOptions& options) {
  const std::string chosen = clary_context_isa(make_context({}).get());
  if (options.json) return info_json(options, chosen);
  fmt::print("Clary {}\nCPU: {}, {} cores usable\n", clary_version(), clary_cpu_name(), usable_cores());
  std::string text;
  for (const Cache& cache : caches())
    text += fmt::format("{}{} {}{}", text.empty() ? "" : ", ", cache.name, cache.size,
                        cache.sharers > 1 ? fmt::format(" (shared by {})", cache.sharers) : "");
  fmt::print("Caches: {}\n\nInstruction sets in this binary, best first", text.empty() ? "unknown" : text);
  fmt::print("{}:\n", options.measure ? "; peaks of one thread in GOP/s" : "");
  std::vector<std::string> header = {"name", "runs here"};
  if (options.measure) header.insert(header.end(), {"f32", "bf16", "int8"});
  Table table(header);
  Progress progress("measuring peaks");
  for (int i = 0; i < clary_isa_count(); ++i) {
    const char* const name = clary_isa_name(i);
    const bool supported = clary_isa_supported(i) == 1;
    std::vector<std::string> row = {name, name == chosen ? "chosen" : supported ? "yes" : "no"};
    if (options.measure && supported) {
      const IsaPeaks peaks = measure(name, 1);
      row.insert(row.end(), {rate_text(peaks.f32), rate_text(peaks.bf16), rate_text(peaks.int8)});
    }
    table.add(row);
    progress.update((i + 1.0) / clary_isa_count());
  }
  fmt::print("{}", table.text());
  if (!options.measure) {
    fmt::print("\n`clary info --measure` measures their peaks.\n");
    return kFine;
  }
  const IsaPeaks all = measure(chosen.c_str(), usable_cores());
  fmt::print("\nAll {} cores, {}: f32 {}, bf16 {}, int8 {} GOP/s; reading memory {} GB/s\n", usable_cores(), chosen,
             rate_text(all.f32), rate_text(all.bf16), rate_text(all.int8),
             rate_text(Peaks(chosen, usable_cores(), kSecondsPerPeak).get(CLARY_PEAK_READ)));
  return kFine;
}

}  // namespace

void add_info_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<InfoOptions>();
  CLI::App* const command = app.add_subcommand("info", "This CPU: instruction sets, caches, cores, peaks");
  command->add_flag("--measure", options->measure, "Measure what the instruction sets reach on registers alone");
  command->add_flag("--json", options->json, "Print JSON");
  command->footer("Example:\n  clary info --measure");
  command->callback([options, &action] { action = [options] { return info(*options); }; });
}

}  // namespace clary::command
