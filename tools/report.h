// What the subcommands print: figures in a form that people read, and the machine in a form that machines read.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "case.h"
#include "timing.h"

namespace clary::command {

// "1.75 %", and "3.1e-07" below 0.01 %.
std::string error_text(double error);
// "12.3 ms", three significant digits.
std::string time_text(double seconds);
// "1.5 MiB"
std::string bytes_text(double bytes);
// Bits that a relative error leaves right: -log2(error); "all" for 0.
std::string bits_text(double relative_error);

// Columns as wide as their widest cell; the first one left-aligned, the others right-aligned.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// Bytes that are not UTF-8, as names of files may hold, are replaced.
std::string json_text(const nlohmann::json& json);
void print_json(const nlohmann::json& json);

nlohmann::json errors_json(const CaseErrors& errors);
nlohmann::json timing_json(const Timing& timing);
// CPU, instruction set, threads, compiler, flags, version, date.
nlohmann::json environment_json(const clary_context* context, int threads);
// "Clary 0.1.0 on NAME, ISA, N threads"
std::string environment_text(const clary_context* context, int threads);

// Which precision the heads of the last run ended with, and why they moved: "12 heads int8 (sampled error 1.1 %)".
std::string heads_text(const clary_plan* plan, const support::Problem& problem);

}  // namespace clary::command
