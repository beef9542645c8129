// A plan at work: quantise -> attend -> merge, once per precision that the guard asks for.
#pragma once

#include "core/parallel.h"
#include "plan/workspace.h"

namespace clary {

void run_plan(Plan& plan, const Tensors& tensors, const Workspace& workspace, const Parallel& parallel);

}  // namespace clary
