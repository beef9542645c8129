#include "cpu/isa/avx2.h"
#include "kernel/table.h"

namespace clary {
extern const KernelTable kAvxVnniKernels;
constinit const KernelTable kAvxVnniKernels = make_table<AvxVnni>();
}  // namespace clary
