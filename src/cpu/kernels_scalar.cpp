#include "cpu/isa/scalar.h"
#include "kernel/table.h"

namespace clary {
extern const KernelTable kScalarKernels;
constinit const KernelTable kScalarKernels = make_table<Scalar>();
}  // namespace clary
