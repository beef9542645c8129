#include "cpu/isa/avx512.h"
#include "kernel/table.h"

namespace clary {
extern const KernelTable kAvx512VnniKernels;
constinit const KernelTable kAvx512VnniKernels = make_table<Avx512Vnni>();
}  // namespace clary
