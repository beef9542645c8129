#include "cpu/isa/neon.h"
#include "kernel/table.h"

namespace clary {
extern const KernelTable kNeonKernels;
constinit const KernelTable kNeonKernels = make_table<Neon>();
}  // namespace clary
