#include "cpu/isa/avx512.h"
#include "kernel/table.h"

namespace clary {
extern const KernelTable kAvx512Bf16Kernels;
constinit const KernelTable kAvx512Bf16Kernels = make_table<Avx512Bf16>();
}  // namespace clary
