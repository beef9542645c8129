// Version, errors, instruction sets and their measured peaks.
#include <algorithm>
#include <chrono>
#include <new>

#include "core/cpu_info.h"
#include "core/status.h"
#include "cpu/dispatch.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// The best of several stretches of about 2 ms: what the machine can do when nobody else is on it.
double measure_work(const clary::KernelTable& kernels, clary_peak what, double seconds) {
  int64_t rounds = 1000;
  double best = 0;
  for (const auto begin = Clock::now(); seconds_since(begin) < seconds;) {
    const auto start = Clock::now();
    const double ops = kernels.work(what, rounds);
    const double took = seconds_since(start);
    if (took < 2e-3) {
      rounds *= 2;
      continue;
    }
    best = std::max(best, ops / took * 1e-9);
  }
  return best;
}

clary_status measure_read(const clary::KernelTable& kernels, double seconds, double* result) {
  constexpr size_t kBytes = size_t{256} << 20;  // beyond every cache
  const auto count = static_cast<int64_t>(kBytes / sizeof(float));
  auto* data = static_cast<float*>(::operator new(kBytes, std::align_val_t(64), std::nothrow));
  if (data == nullptr) return clary::fail(CLARY_OUT_OF_MEMORY, "no memory for 256 MiB to read");
  std::fill(data, data + count, 1.0f);
  volatile float sink = 0;
  double best = 0;
  for (const auto begin = Clock::now(); best == 0 || seconds_since(begin) < seconds;) {
    const auto start = Clock::now();
    sink = kernels.sum_memory(data, count);
    best = std::max(best, static_cast<double>(kBytes) / seconds_since(start) * 1e-9);
  }
  (void)sink;
  ::operator delete(data, std::align_val_t(64));
  *result = best;
  return CLARY_OK;
}

}  // namespace

const char* clary_last_error(void) { return clary::last_error(); }

const char* clary_status_name(clary_status status) {
  switch (status) {
    case CLARY_OK: return "OK";
    case CLARY_INVALID_ARGUMENT: return "INVALID_ARGUMENT";
    case CLARY_UNSUPPORTED: return "UNSUPPORTED";
    case CLARY_OUT_OF_MEMORY: return "OUT_OF_MEMORY";
    case CLARY_INTERNAL: return "INTERNAL";
  }
  return "UNKNOWN";
}

#define CLARY_TEXT_OF(x) #x
#define CLARY_TEXT(x) CLARY_TEXT_OF(x)
const char* clary_version(void) {
  return CLARY_TEXT(CLARY_VERSION_MAJOR) "." CLARY_TEXT(CLARY_VERSION_MINOR) "." CLARY_TEXT(CLARY_VERSION_PATCH);
}

int clary_isa_count(void) { return clary::instruction_set_count(); }

const char* clary_isa_name(int i) {
  return i >= 0 && i < clary::instruction_set_count() ? clary::instruction_set(i).name : "";
}

int clary_isa_supported(int i) {
  return i >= 0 && i < clary::instruction_set_count() && clary::instruction_set(i).supported ? 1 : 0;
}

const char* clary_cpu_name(void) { return clary::cpu_name(); }

clary_status clary_measure_peak(const char* isa, clary_peak what, double seconds, double* result) {
  clary::clear_error();
  if (result == nullptr) return clary::fail(CLARY_INVALID_ARGUMENT, "result: is NULL");
  if (what < CLARY_PEAK_F32 || what > CLARY_PEAK_READ)
    return clary::fail(CLARY_INVALID_ARGUMENT, "what: is %d, allowed are CLARY_PEAK_F32 (0) to CLARY_PEAK_READ (3)",
                       static_cast<int>(what));
  if (!(seconds > 0 && seconds <= 60))
    return clary::fail(CLARY_INVALID_ARGUMENT, "seconds: is %g, allowed are more than 0 to 60", seconds);
  const clary::KernelTable* kernels = nullptr;
  CLARY_TRY(clary::choose_kernels(isa, &kernels));
  if (what == CLARY_PEAK_READ) return measure_read(*kernels, seconds, result);
  *result = measure_work(*kernels, what, seconds);
  return CLARY_OK;
}
