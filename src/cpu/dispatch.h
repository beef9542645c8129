// Which instruction sets this binary has, and which one runs.
#pragma once

#include "kernel/args.h"

namespace clary {

struct InstructionSet {
  const char* name;
  const KernelTable* kernels;
  bool supported;  // by this CPU and its operating system
};

int instruction_set_count();
// Best first. The emulated matrix engine comes last: it is for tests and never chosen unasked.
InstructionSet instruction_set(int i);

// `name` nullptr: the environment variable CLARY_ISA, and without it the best supported set.
clary_status choose_kernels(const char* name, const KernelTable** kernels);

}  // namespace clary
