// The C interface with owners and exceptions, as the command needs it.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "clary/clary.h"

namespace clary::command {

// Throws with the reason when a call failed.
inline void check(clary_status status) {
  if (status == CLARY_OK) return;
  const std::string reason = clary_last_error();
  throw std::runtime_error(reason.empty() ? clary_status_name(status) : reason);
}

struct DestroyContext {
  void operator()(clary_context* context) const { clary_context_destroy(context); }
};
using Context = std::unique_ptr<clary_context, DestroyContext>;

struct DestroyPlan {
  void operator()(clary_plan* plan) const { clary_plan_destroy(plan); }
};
using Plan = std::unique_ptr<clary_plan, DestroyPlan>;

inline clary_plan_info info_of(const clary_plan* plan) {
  clary_plan_info info{};
  info.size = sizeof info;
  check(clary_plan_get_info(plan, &info));
  return info;
}

inline clary_head_info head_of(const clary_plan* plan, int64_t batch, int64_t head) {
  clary_head_info info{};
  info.size = sizeof info;
  check(clary_plan_get_head(plan, batch, head, &info));
  return info;
}

inline std::string describe(const clary_plan* plan) {
  std::string text(clary_plan_describe(plan, nullptr, 0) + 1, '\0');
  clary_plan_describe(plan, text.data(), text.size());
  text.pop_back();
  return text;
}

}  // namespace clary::command
