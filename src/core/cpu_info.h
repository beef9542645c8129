// What this CPU can run.
#pragma once

namespace clary {

struct CpuFeatures {
  bool avx2 = false;  // with FMA and F16C
  bool avxvnni = false;
  bool avx512vnni = false;  // with F, BW, DQ, VL
  bool avx512bf16 = false;
  bool amx = false;      // tile, INT8, BF16, and the kernel's permission to use them
  bool dotprod = false;  // ARMv8.2
  bool i8mm = false;     // with BF16
};

// Asked once per process. AMX permission is requested on the way: it is per process and cannot be given back.
const CpuFeatures& cpu_features();
// Brand string, or "unknown CPU".
const char* cpu_name();

}  // namespace clary
