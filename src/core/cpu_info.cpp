#include "core/cpu_info.h"

#include <cstdint>
#include <cstdio>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace clary {
namespace {

#if defined(__x86_64__)
struct Leaf {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};
Leaf cpuid(uint32_t leaf, uint32_t sub = 0) {
  Leaf r;
  if (__get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d) == 0) return {};
  return r;
}
bool bit(uint32_t word, int i) { return ((word >> i) & 1) != 0; }

// Which register states the operating system saves (XCR0).
uint64_t saved_states() {
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux hands out the 8 KB of tile state per process, on request: ARCH_REQ_XCOMP_PERM for XTILEDATA (18).
bool request_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

CpuFeatures detect() {
  CpuFeatures f;
  const Leaf one = cpuid(1), seven = cpuid(7), seven1 = cpuid(7, 1);
  if (!bit(one.c, 27)) return f;  // OSXSAVE
  const uint64_t saved = saved_states();
  const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;
  f.avx2 = ymm && bit(seven.b, 5) && bit(one.c, 12) && bit(one.c, 29);
  f.avxvnni = f.avx2 && bit(seven1.a, 4);
  f.avx512vnni =
      f.avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31) && bit(seven.c, 11);
  f.avx512bf16 = f.avx512vnni && bit(seven1.a, 5);
  f.amx = f.avx512bf16 && bit(seven.c, 1) && tiles && bit(seven.d, 22) && bit(seven.d, 24) && bit(seven.d, 25) &&
          request_tiles();
  return f;
}

const char* read_name() {
  static char text[49];
  for (uint32_t i = 0; i < 3; ++i) {
    const Leaf l = cpuid(0x80000002u + i);
    std::memcpy(text + 16 * i, &l, 16);
  }
  const char* begin = text;
  while (*begin == ' ') ++begin;
  return *begin != '\0' ? begin : "unknown CPU";
}
#elif defined(__aarch64__)
CpuFeatures detect() {
  CpuFeatures f;
  const unsigned long one = getauxval(AT_HWCAP), two = getauxval(AT_HWCAP2);
  f.dotprod = ((one >> 20) & 1) != 0 && ((one >> 10) & 1) != 0;            // ASIMDDP, ASIMDHP
  f.i8mm = f.dotprod && ((two >> 13) & 1) != 0 && ((two >> 14) & 1) != 0;  // I8MM, BF16
  return f;
}

const char* read_name() {
  static char text[128] = "unknown CPU";
  if (FILE* file = std::fopen("/sys/firmware/devicetree/base/model", "r")) {
    if (std::fgets(text, sizeof text, file) == nullptr) std::strcpy(text, "unknown CPU");
    std::fclose(file);
  }
  return text;
}
#else
CpuFeatures detect() { return {}; }
const char* read_name() { return "unknown CPU"; }
#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

const char* cpu_name() {
  static const char* const name = read_name();
  return name;
}

}  // namespace clary
