// A plan in numbers and in words.
#pragma once

#include "plan/plan.h"

namespace clary {

clary_plan_info plan_info(const Plan& plan, size_t workspace_bytes);
// Returns the length of the text; writes at most capacity - 1 of it and a zero.
size_t describe(const Plan& plan, size_t workspace_bytes, char* text, size_t capacity);

// One line about a finished run, to stderr.
void report_run(const Plan& plan, int threads, double seconds);

}  // namespace clary
