// How long calls take, and how fast the machine could be.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "clary/clary.h"
#include "progress.h"

namespace clary::command {

struct Timing {
  double median_s = 0, p10_s = 0, p90_s = 0;
  int runs = 0;
};

struct TimingOptions {
  double seconds = 1;  // per call, warm-up apart
  int repeat = 0;      // > 0: exactly so many runs of each instead
};

void add_timing_options(CLI::App& app, TimingOptions& options);

// Times several calls in turns, so that what else the machine does meets all of them alike. Each is warmed up first.
std::vector<Timing> time_calls(const std::vector<std::function<void()>>& calls, const TimingOptions& options,
                               Progress& progress);

// The peaks of an instruction set on `threads` threads at once, measured when first asked for.
class Peaks {
 public:
  Peaks(std::string isa, int threads, double seconds) : isa_(std::move(isa)), threads_(threads), seconds_(seconds) {}
  // GOP/s (GB/s for CLARY_PEAK_READ). NaN where the instruction set has no such instruction.
  double get(clary_peak what);
  // What a precision could reach: INT8 for int8 and int4, both in their shares for int8_f16, and so on.
  double of(clary_precision precision, double dim_qk, double dim_v);

 private:
  std::string isa_;
  int threads_;
  double seconds_;
  double known_[4] = {-1, -1, -1, -1};  // negative: not measured yet
};

}  // namespace clary::command
