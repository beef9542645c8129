#include "cpu/isa/neon.h"
#include "kernel/table.h"

namespace clary {
extern const KernelTable kI8mmKernels;
constinit const KernelTable kI8mmKernels = make_table<I8mm>();
}  // namespace clary
