#include "cpu/isa/amx.h"
#include "kernel/table.h"

namespace clary {
extern const KernelTable kAmxKernels;
constinit const KernelTable kAmxKernels = make_table<Amx>();
}  // namespace clary
