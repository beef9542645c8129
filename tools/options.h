// Flags that several subcommands share. What a flag may hold is defined once, by the grammar of problems: --causal X
// is the token causal=X, and so on.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "support/problem.h"

namespace clary::command {

// A subcommand's work, chosen while the command line is read and run afterwards; its result is the exit code.
using Action = std::function<int()>;

constexpr int kFine = 0, kCheckFailed = 1, kWrongUse = 2;

void add_info_command(CLI::App& app, Action& action);
void add_run_command(CLI::App& app, Action& action);
void add_check_command(CLI::App& app, Action& action);
void add_bench_command(CLI::App& app, Action& action);
void add_explain_command(CLI::App& app, Action& action);
void add_demo_command(CLI::App& app, Action& action);

struct MachineOptions {
  int threads = 0;  // 0 = the cores this process may use
  std::string isa;  // empty = CLARY_ISA or the best
};
void add_machine_options(CLI::App& app, MachineOptions& options);

// What to compute on tensors from files.
struct AttentionOptions {
  std::string precision, causal, window, softcap, scale, guard, layout;  // empty = not given
  std::string mask, alibi_slopes, sinks;                                 // .npy files
  bool f32_output = false;                                               // also for float16 inputs
};
void add_attention_options(CLI::App& app, AttentionOptions& options);
// The problem that the flags describe; shapes and types are still the defaults.
support::Problem problem_of(const AttentionOptions& options);

struct InputOptions {
  std::string q, k, v, input, prefix;
};
void add_input_options(CLI::App& app, InputOptions& options);

// --precision LIST; empty = not given, and then what `fallback` tells the reader.
void add_precision_list(CLI::App& app, std::string& list, const std::string& fallback);
std::vector<clary_precision> parse_precisions(const std::string& list);

// "PROBLEM...": one problem of unquoted words, or one per quoted argument.
std::vector<std::string> join_problems(const std::vector<std::string>& words);

}  // namespace clary::command
