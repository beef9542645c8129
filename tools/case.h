// One attention to compute, wherever it comes from: a described problem, or Q, K and V from files.
#pragma once

#include <string>
#include <vector>

#include "api.h"
#include "options.h"
#include "support/busy.h"
#include "support/oracle.h"
#include "support/problem.h"

namespace clary::command {

struct Case {
  std::string name;
  support::Problem problem;  // for files: shapes, types and flags, but not how the data were made
  support::Tensors tensors;

  // `problem` at another precision, as the library wants to be told. Points into this Case.
  clary_attention_params params(clary_precision precision) const;
};

Case described_case(const std::string& description);

// The shapes of a described problem without the memory and without the numbers of Q, K, V and out: enough for a plan.
struct DescribedPlan {
  std::unique_ptr<support::Tensors> tensors;  // masks, slopes and sinks, which the plan points to
  Plan plan;
};
DescribedPlan described_plan(const std::string& description, clary_context* context);

// The tensors of the files. Safetensors without a prefix: every PREFIX.q, .k, .v there is. A file's metadata may give
// "layout" and "softmax_scale"; flags go before them. bf16 inputs get an f32 output, which .npy can hold.
std::vector<Case> file_cases(const InputOptions& input, const AttentionOptions& attention);

// `pool`: runs its loops, if there is one.
Context make_context(const MachineOptions& options, support::BusyPool* pool = nullptr);
int usable_cores();
int threads_of(const MachineOptions& options);

// The call as an application makes it; lse may be left out.
void attend(Case& c, clary_precision precision, clary_context* context, bool with_lse);
// The same without what hides keys: causality, window and mask. Overwrites the output.
void attend_dense(Case& c, clary_precision precision, clary_context* context);
// Refuses what does not fit together.
Plan make_plan(Case& c, clary_precision precision, clary_context* context);
// A plan that has run once, to look at.
Plan run_plan(Case& c, clary_precision precision, clary_context* context);

// Scores that a query may see, counted exactly: causal and window by their bounds, masks by their entries.
double visible_scores(const Case& c);
// Those that there would be if nothing were hidden.
double all_scores(const Case& c);
// One multiply-add is 2: for each score Dk, for its part of the output Dv.
double operations(const Case& c, double scores);

struct CaseErrors {
  support::Errors out, lse;
  int64_t rows = 0;
};

// Compares cases with float64 attention; computed once per case, for about `row_limit` rows (0 = all).
class Oracle {
 public:
  Oracle(const Case& c, int64_t row_limit);
  // The case's output and LSE, as the last attend() left them.
  CaseErrors errors(const Case& c) const;
  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }

 private:
  std::vector<support::Row> rows_;
  support::Exact exact_;
};

}  // namespace clary::command
