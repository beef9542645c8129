#include "cpu/isa/amx_emulated.h"
#include "kernel/table.h"

namespace clary {
extern const KernelTable kAmxEmulatedKernels;
constinit const KernelTable kAmxEmulatedKernels = make_table<AmxEmulated>();
}  // namespace clary
