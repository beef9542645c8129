#include "cpu/dispatch.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/cpu_info.h"
#include "core/status.h"
#include "core/verbose.h"

namespace clary {

extern const KernelTable kAmxKernels, kAvx512Bf16Kernels, kAvx512VnniKernels, kAvxVnniKernels, kAvx2Kernels;
extern const KernelTable kI8mmKernels, kNeonKernels;
extern const KernelTable kScalarKernels, kAmxEmulatedKernels;

namespace {

struct Entry {
  const KernelTable* kernels;
  bool (*supported)(const CpuFeatures&);
};

// CLARY_HAS_X: cmake/kernels.cmake has X among the kernels it compiles.
constexpr Entry kEntries[] = {
#ifdef CLARY_HAS_AMX
    {&kAmxKernels, [](const CpuFeatures& f) { return f.amx; }},
#endif
#ifdef CLARY_HAS_AVX512BF16
    {&kAvx512Bf16Kernels, [](const CpuFeatures& f) { return f.avx512bf16; }},
#endif
#ifdef CLARY_HAS_AVX512VNNI
    {&kAvx512VnniKernels, [](const CpuFeatures& f) { return f.avx512vnni; }},
#endif
#ifdef CLARY_HAS_AVXVNNI
    {&kAvxVnniKernels, [](const CpuFeatures& f) { return f.avxvnni; }},
#endif
#ifdef CLARY_HAS_AVX2
    {&kAvx2Kernels, [](const CpuFeatures& f) { return f.avx2; }},
#endif
#ifdef CLARY_HAS_I8MM
    {&kI8mmKernels, [](const CpuFeatures& f) { return f.i8mm; }},
#endif
#ifdef CLARY_HAS_NEON
    {&kNeonKernels, [](const CpuFeatures& f) { return f.dotprod; }},
#endif
    {&kScalarKernels, [](const CpuFeatures&) { return true; }},
#ifdef CLARY_HAS_AMX_EMULATED
    {&kAmxEmulatedKernels, [](const CpuFeatures&) { return true; }},
#endif
};

clary_status unknown(const char* source, const char* name) {
  char known[256] = "";
  for (int i = 0; i < instruction_set_count(); ++i) {
    const size_t used = std::strlen(known);
    std::snprintf(known + used, sizeof known - used, "%s%s", i == 0 ? "" : ", ", instruction_set(i).name);
  }
  return fail(CLARY_INVALID_ARGUMENT, "%s: \"%s\" is not known; this binary has %s", source, name, known);
}

}  // namespace

int instruction_set_count() { return static_cast<int>(sizeof kEntries / sizeof kEntries[0]); }

InstructionSet instruction_set(int i) {
  return {kEntries[i].kernels->name, kEntries[i].kernels, kEntries[i].supported(cpu_features())};
}

clary_status choose_kernels(const char* name, const KernelTable** kernels) {
  const char* source = name != nullptr ? "isa" : "CLARY_ISA";
  if (name == nullptr) name = std::getenv("CLARY_ISA");
  for (int i = 0; i < instruction_set_count(); ++i) {
    const InstructionSet set = instruction_set(i);
    if (name != nullptr && std::strcmp(name, set.name) != 0) continue;
    if (set.supported) {
      *kernels = set.kernels;
      return CLARY_OK;
    }
    if (name == nullptr && is_verbose()) std::fprintf(stderr, "clary: %s refused: this CPU cannot run it\n", set.name);
    if (name != nullptr)
      return fail(CLARY_UNSUPPORTED, "%s: \"%s\" needs instructions that this CPU (%s) does not have", source, name,
                  cpu_name());
  }
  return unknown(source, name);
}

}  // namespace clary
