#include "timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <thread>

namespace clary::command {
namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double timed(const std::function<void()>& call) {
  const double start = now_s();
  call();
  return now_s() - start;
}

// Linear interpolation between order statistics, as numpy.percentile does.
double quantile(const std::vector<double>& sorted, double q) {
  const double place = q * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(place);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (place - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

}  // namespace

void add_timing_options(CLI::App& app, TimingOptions& options) {
  app.add_option("--repeat", options.repeat, "Timed runs (default: as many as fit into --seconds, at least 5)")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  app.add_option("--seconds", options.seconds, "Time for each problem and preset")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("S");
}

std::vector<Timing> time_calls(const std::vector<std::function<void()>>& calls, const TimingOptions& options,
                               Progress& progress) {
  constexpr double kWarmUpSeconds = 0.05;  // pages, caches and the clock frequency settle within that
  constexpr int kFewestRuns = 5, kMostRuns = 100000;
  double round_s = 0;
  for (const auto& call : calls) {
    double last = timed(call);
    for (double spent = last; spent < kWarmUpSeconds; spent += last) last = timed(call);
    round_s += last;
  }
  const double budget_s = options.seconds * static_cast<double>(calls.size());
  const int planned =
      options.repeat > 0
          ? options.repeat
          : static_cast<int>(std::clamp(budget_s / std::max(round_s, 1e-9), double{kFewestRuns}, double{kMostRuns}));
  std::vector<std::vector<double>> samples(calls.size());
  for (int round = 0; round < planned; ++round)
    for (size_t i = 0; i < calls.size(); ++i) {
      samples[i].push_back(timed(calls[i]));
      progress.update((round + static_cast<double>(i + 1) / static_cast<double>(calls.size())) / planned);
    }
  std::vector<Timing> result;
  for (auto& sample : samples) {
    std::sort(sample.begin(), sample.end());
    result.push_back({quantile(sample, 0.5), quantile(sample, 0.1), quantile(sample, 0.9), planned});
  }
  return result;
}

double Peaks::get(clary_peak what) {
  double& known = known_[what];
  if (known >= 0 || std::isnan(known)) return known;
  // One measurement per thread, all at the same time: clock frequency and shared cores are then those of a real call.
  std::vector<double> rates(static_cast<size_t>(threads_), std::numeric_limits<double>::quiet_NaN());
  std::vector<std::thread> threads;
  for (double& rate : rates)
    threads.emplace_back([this, what, &rate] {
      double value = 0;
      if (clary_measure_peak(isa_.c_str(), what, seconds_, &value) == CLARY_OK) rate = value;
    });
  for (auto& thread : threads) thread.join();
  return known = std::accumulate(rates.begin(), rates.end(), 0.0);
}

double Peaks::of(clary_precision precision, double dim_qk, double dim_v) {
  const double f32 = get(CLARY_PEAK_F32);
  if (precision == CLARY_EXACT) return f32;
  // Without bf16 instructions, 16-bit products run as f32.
  const bool in_bf16 = precision == CLARY_BF16 || precision == CLARY_INT8_F16 || precision == CLARY_BF16X3;
  const double bf16 = in_bf16 ? get(CLARY_PEAK_BF16) : f32;
  const double wide = std::isnan(bf16) ? f32 : std::max(bf16, f32);
  if (precision == CLARY_BF16) return wide;
  if (precision == CLARY_BF16X3) return std::max(wide / 3, f32);
  const double int8 = get(CLARY_PEAK_INT8);
  if (precision == CLARY_INT8_F16) return (dim_qk + dim_v) / (dim_qk / int8 + dim_v / wide);
  return int8;
}

}  // namespace clary::command
