#include "report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

namespace clary::command {

std::string error_text(double error) {
  return error == 0 || error >= 1e-4 ? fmt::format("{:.3g} %", 100 * error) : fmt::format("{:.1e}", error);
}

std::string time_text(double seconds) {
  if (seconds >= 1) return fmt::format("{:.3g} s", seconds);
  return seconds >= 1e-3 ? fmt::format("{:.3g} ms", seconds * 1e3) : fmt::format("{:.3g} us", seconds * 1e6);
}

std::string bytes_text(double bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < std::size(units); bytes /= 1024) ++unit;
  return fmt::format("{:.4g} {}", bytes, units[unit]);
}

std::string bits_text(double relative_error) {
  return relative_error > 0 ? fmt::format("{:.1f}", -std::log2(relative_error)) : relative_error == 0 ? "all" : "-";
}

std::string Table::text() const {
  std::vector<size_t> widths(rows_.front().size());
  for (const auto& row : rows_)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string result;
  for (const auto& row : rows_) {
    std::string line = "  ";
    for (size_t i = 0; i < row.size(); ++i)
      line += i == 0 ? fmt::format("{:<{}}", row[i], widths[i]) : fmt::format("  {:>{}}", row[i], widths[i]);
    result += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return result;
}

std::string json_text(const nlohmann::json& json) {
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

void print_json(const nlohmann::json& json) { fmt::print("{}\n", json_text(json)); }

nlohmann::json errors_json(const CaseErrors& errors) {
  return {{"rows", errors.rows},
          {"cosine", errors.out.cosine},
          {"relative_l1", errors.out.relative_l1},
          {"relative_l2", errors.out.relative_l2},
          {"rmse", errors.out.rmse},
          {"max_abs", errors.out.max_abs},
          {"mismatched_nonfinite", errors.out.mismatched_nonfinite}};
}

nlohmann::json timing_json(const Timing& timing) {
  return {{"median_s", timing.median_s}, {"p10_s", timing.p10_s}, {"p90_s", timing.p90_s}, {"runs", timing.runs}};
}

nlohmann::json environment_json(const clary_context* context, int threads) {
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  return {{"version", clary_version()},         {"cpu", clary_cpu_name()},
          {"isa", clary_context_isa(context)},  {"threads", threads},
          {"compiler", CLARY_COMPILER},         {"flags", CLARY_BUILD_FLAGS},
          {"kernel_flags", CLARY_KERNEL_FLAGS}, {"date", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(now))}};
}

std::string environment_text(const clary_context* context, int threads) {
  return fmt::format("Clary {} on {}, {}, {} thread{}", clary_version(), clary_cpu_name(), clary_context_isa(context),
                     threads, threads == 1 ? "" : "s");
}

std::string heads_text(const clary_plan* plan, const support::Problem& problem) {
  struct Group {
    int heads = 0, raised = 0, measured = 0;
    double error = 0;  // largest sampled one
  };
  std::map<clary_precision, Group> groups;
  for (int64_t b = 0; b < problem.batch; ++b)
    for (int64_t h = 0; h < problem.heads_q; ++h) {
      const clary_head_info head = head_of(plan, b, h);
      Group& group = groups[head.precision];
      ++group.heads;
      group.raised += head.raises > 0;
      if (std::isnan(head.first_error)) continue;
      ++group.measured;
      group.error = std::max(group.error, head.first_error);
    }
  std::string text;
  for (const auto& [precision, group] : groups) {
    text += fmt::format("{}{} head{} {}", text.empty() ? "" : "; ", group.heads, group.heads == 1 ? "" : "s",
                        support::name_of(precision));
    if (group.raised)
      text += fmt::format(" ({} raised, error up to {} before)", group.raised, error_text(group.error));
    else if (group.measured)
      text += fmt::format(" (sampled error up to {})", error_text(group.error));
  }
  return text;
}

}  // namespace clary::command
