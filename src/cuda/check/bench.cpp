#include "cuda/check/bench.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <vector>

#include <nlohmann/json.hpp>

#include "cuda/check/device.h"
#include "cuda/check/variants.h"
#include "cuda/host/plan.h"
#include "cuda/launch/kernels.h"

namespace clary::check {
namespace {

constexpr int64_t kHeads = 32;

struct Shape {
  int64_t length, dim;
  bool causal;
  clary_precision precision;
};

// 4 B H Lq Lk d, of which a causal call does (about) half.
double operations(const Shape& s) {
  const double length = static_cast<double>(s.length);
  const double pairs = s.causal ? length * (length + 1) / 2 : length * length;
  return 4.0 * kHeads * pairs * static_cast<double>(s.dim);
}

// bf16 of roughly N(0, 1), the same for every head: values matter to clocks, not which head has them.
std::vector<uint16_t> numbers(int64_t count, uint64_t seed) {
  std::vector<uint16_t> values(static_cast<size_t>(count));
  uint64_t state = seed * 2 + 1;
  for (uint16_t& value : values) {
    float sum = 0;
    state = state * 6364136223846793005u + 1442695040888963407u;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>((state >> (16 + 12 * i)) & 0xfff) / 4096.0f - 0.5f;
    sum *= 1.7320508f;
    uint32_t bits;
    std::memcpy(&bits, &sum, 4);
    value = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  return values;
}

// Median of repeated runs in milliseconds, each timed by events; about 0.3 s in all.
template <class Run>
double median_ms(cudaStream_t stream, const Run& run) {
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin), "event");
  must(cudaEventCreate(&end), "event");
  std::vector<float> times;
  run(), run();
  must(cudaStreamSynchronize(stream), "warming up");
  for (double total = 0; times.size() < 5 || (total < 300 && times.size() < 200);) {
    must(cudaEventRecord(begin, stream), "event");
    run();
    must(cudaEventRecord(end, stream), "event");
    must(cudaEventSynchronize(end), "timing");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end), "timing");
    times.push_back(ms), total += static_cast<double>(ms);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return static_cast<double>(times[times.size() / 2]);
}

// Q, K, V and out of one shape on the device, and the plan that clary_attention makes of them.
struct Bench {
  Memory q, k, v, out, workspace;
  cuda::CudaPlan plan;
  const cuda::ArchKernels* kernels = nullptr;
  int processors = 0;

  explicit Bench(const Shape& s) {
    const int64_t head = s.length * s.dim;
    const size_t bytes = static_cast<size_t>(head) * 2;
    uint64_t seed = 1;
    for (Memory* memory : {&q, &k, &v}) {
      *memory = Memory(bytes * kHeads);
      const std::vector<uint16_t> values = numbers(head, seed++);
      for (int64_t h = 0; h < kHeads; ++h)
        must(cudaMemcpy(static_cast<char*>(memory->data()) + static_cast<size_t>(h) * bytes, values.data(), bytes,
                        cudaMemcpyHostToDevice),
             "upload");
    }
    out = Memory(bytes * kHeads);
    int major = 0, minor = 0;
    must(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "device");
    must(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "device");
    must(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), "device");
    kernels = cuda::kernels_for(10 * major + minor);
    if (kernels == nullptr) throw std::runtime_error("no kernels for this GPU");
    make_plan(s, nullptr);
    workspace = Memory(plan.workspace_bytes);
    make_plan(s, workspace.data());
  }

  void make_plan(const Shape& s, void* memory) {
    const int64_t shape[4] = {1, kHeads, s.length, s.dim};
    clary_tensor views[4];
    void* const data[4] = {q.data(), k.data(), v.data(), out.data()};
    for (int i = 0; i < 4; ++i) views[i] = {data[i], 2, 0, 4, 4, 16, 1, shape, nullptr, 0};
    clary_attention_params params;
    clary_attention_params_init(&params);
    params.precision = s.precision;
    params.causal = s.causal ? CLARY_CAUSAL_BOTTOM_RIGHT : CLARY_NOT_CAUSAL;
    Problem problem;
    Tensors tensors;
    if (make_problem(&views[0], &views[1], &views[2], &views[3], nullptr, &params, false, problem, tensors) !=
            CLARY_OK ||
        make_cuda_plan(problem, tensors, kernels->instances, kernels->name, memory, plan) != CLARY_OK)
      throw std::runtime_error(clary_last_error());
  }
};

nlohmann::json measure(const Shape& s, cudaStream_t stream) {
  Bench b(s);
  const auto quantise = [&] { must(static_cast<cudaError_t>(b.kernels->quantise(b.plan, stream)), "quantise"); };
  const auto attend = [&] {
    must(static_cast<cudaError_t>(b.kernels->attend(b.plan, stream, b.processors)), "attend");
  };
  const double quantise_ms = median_ms(stream, quantise), attend_ms = median_ms(stream, attend);
  const double total_ms = median_ms(stream, [&] { quantise(), attend(); });
  const double tops = operations(s) * 1e-9;
  const double bytes = 3.0 * static_cast<double>(kHeads * s.length * s.dim) * 2;
  const char* const precision = s.precision == CLARY_EXACT ? "exact bf16" : "int8";
  std::printf("%6lld %4lld %-10s %-10s %9.3f ms %8.1f TOPS %9.3f ms %8.1f TOPS %7.0f GB/s read\n",
              static_cast<long long>(s.length), static_cast<long long>(s.dim), s.causal ? "causal" : "full", precision,
              attend_ms, tops / attend_ms, total_ms, tops / total_ms, bytes / quantise_ms * 1e-6);
  return {{"length", s.length},
          {"dim", s.dim},
          {"causal", s.causal},
          {"precision", precision},
          {"heads", kHeads},
          {"quantise_ms", quantise_ms},
          {"attend_ms", attend_ms},
          {"total_ms", total_ms},
          {"attend_tops", tops / attend_ms},
          {"total_tops", tops / total_ms},
          {"quantise_gbs", bytes / quantise_ms * 1e-6}};
}

void write_report(const std::string& path, const nlohmann::json& rows) {
  cudaDeviceProp properties;
  must(cudaGetDeviceProperties(&properties, 0), "properties");
  int driver = 0;
  must(cudaDriverGetVersion(&driver), "driver");
  const nlohmann::json report = {{"gpu", properties.name}, {"driver", driver}, {"rows", rows}};
  std::ofstream(path) << report.dump(1) << '\n';
}

#if defined(CLARY_GPU_VARIANTS)
// The last head of the output of one run of a plan's attention kernel.
std::vector<uint16_t> run_once(Bench& b, const cuda::ArchKernels& kernels, const cuda::CudaPlan& plan, const Shape& s,
                               cudaStream_t stream) {
  std::vector<uint16_t> head(static_cast<size_t>(s.length * s.dim));
  must(cudaMemsetAsync(b.out.data(), 0xff, b.out.bytes(), stream), "clearing out");
  must(static_cast<cudaError_t>(kernels.attend(plan, stream, b.processors)), "attend");
  must(cudaStreamSynchronize(stream), "attend");
  must(cudaMemcpy(head.data(), static_cast<char*>(b.out.data()) + b.out.bytes() - head.size() * 2, head.size() * 2,
                  cudaMemcpyDeviceToHost),
       "download");
  return head;
}

// Relative L2 difference of two arrays of bf16.
double difference(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b) {
  const auto value = [](uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return static_cast<double>(f);
  };
  double squares = 0, apart = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    squares += value(a[i]) * value(a[i]);
    apart += (value(a[i]) - value(b[i])) * (value(a[i]) - value(b[i]));
  }
  return std::sqrt(apart / squares);
}

// The kernel that ships and its variants, of one shape. Returns how many are wrong. P and V in e4m3 leave 4 % on these
// numbers; a variant rounds other P, and is then as far from the kernel that ships.
int compare_variants(const Shape& s, cudaStream_t stream, nlohmann::json& rows) {
  constexpr double kMostApart = 0.06;
  Bench b(s);
  must(static_cast<cudaError_t>(b.kernels->quantise(b.plan, stream)), "quantise");
  const std::vector<uint16_t> ships = run_once(b, *b.kernels, b.plan, s, stream);
  const auto time = [&](const cuda::ArchKernels& kernels, const cuda::CudaPlan& plan) {
    return median_ms(stream,
                     [&] { must(static_cast<cudaError_t>(kernels.attend(plan, stream, b.processors)), "run"); });
  };
  const auto report = [&](const char* what, nlohmann::json row, double ms, double apart) {
    const double tops = operations(s) / ms * 1e-9;
    std::printf("%4lld %-6s %-10s %s %9.3f ms %8.1f TOPS  %.4f%s\n", static_cast<long long>(s.dim),
                s.causal ? "causal" : "full", s.precision == CLARY_EXACT ? "exact bf16" : "int8", what, ms, tops, apart,
                apart <= kMostApart ? "" : "  WRONG");
    row.update({{"dim", s.dim},
                {"causal", s.causal},
                {"exact", s.precision == CLARY_EXACT},
                {"ms", ms},
                {"tops", tops},
                {"apart", apart}});
    rows.push_back(row);
    return apart <= kMostApart ? 0 : 1;
  };
  int wrong = report("what ships          ", {{"ships", true}}, time(*b.kernels, b.plan), 0);
  const cuda::ArchKernels& kernels = variant_kernels();
  for (size_t i = 0; i < kernels.instances.size(); ++i) {
    const cuda::Instance &other = kernels.instances[i], &mine = *b.plan.instance;
    if (other.pv != mine.pv || other.dim != mine.dim) continue;
    cuda::CudaPlan plan = b.plan;
    plan.instance = &other;
    const cuda::WgmmaKnobs& knobs = variant_knobs()[i];
    char what[64];
    std::snprintf(what, sizeof what, "%6d %7d %-5s", knobs.stages, knobs.special, knobs.turns ? "on" : "off");
    const double apart = difference(ships, run_once(b, kernels, plan, s, stream));
    wrong += report(what, {{"stages", knobs.stages}, {"special", knobs.special}, {"turns", knobs.turns}},
                    time(kernels, plan), apart);
  }
  return wrong;
}
#endif

}  // namespace

int bench(const std::string& path) {
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  nlohmann::json rows = nlohmann::json::array();
  std::printf("length  dim                                attention only           with quantising\n");
  for (const clary_precision precision : {CLARY_INT8, CLARY_EXACT})
    for (const int64_t dim : {64, 96, 128, 192, 256})
      for (const bool causal : {false, true})
        for (const int64_t length : {8192, 16384, 32768})
          if (length == 16384 || (dim != 96 && dim != 192))
            rows.push_back(measure({length, dim, causal, precision}, stream));
  write_report(path, rows);
  return 0;
}

#if defined(CLARY_GPU_VARIANTS)
int variants(const std::string& path) {
  int major = 0;
  must(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "device");
  if (major != 9) return std::puts("variants are of sm_90a; this GPU is another: nothing to measure"), 0;
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  nlohmann::json rows = nlohmann::json::array();
  int wrong = 0;
  std::printf("dim                          stages special turns      attention only       to what ships\n");
  for (const bool causal : {false, true})
    for (const Shape& s : {Shape{16384, 64, causal, CLARY_INT8}, Shape{16384, 96, causal, CLARY_INT8},
                           Shape{16384, 128, causal, CLARY_INT8}, Shape{16384, 256, causal, CLARY_INT8},
                           Shape{16384, 128, causal, CLARY_EXACT}})
      wrong += compare_variants(s, stream, rows);
  write_report(path, rows);
  return wrong;
}
#else
int variants(const std::string&) {
  return std::puts("built without variants: configure with -DCLARY_GPU_VARIANTS=ON"), 0;
}
#endif

}  // namespace clary::check
