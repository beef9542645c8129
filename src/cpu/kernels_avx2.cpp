#include "cpu/isa/avx2.h"
#include "kernel/table.h"

namespace clary {
extern const KernelTable kAvx2Kernels;
constinit const KernelTable kAvx2Kernels = make_table<Avx2>();
}  // namespace clary
