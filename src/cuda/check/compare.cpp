#include "cuda/check/compare.h"

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/check/device.h"
#include "cuda/emulated.h"
#include "cuda/launch/kernels.h"

namespace clary::check {
namespace {

// One call twice: on the GPU, and emulated with the same layout of its workspace.
struct Both {
  support::Tensors host;
  Call call;
  Memory workspace;
  std::vector<std::byte> emulated_workspace;
  cuda::CudaPlan gpu, emulated;
  const cuda::ArchKernels* kernels = nullptr;
  std::string arch;
  int processors = 0;

  explicit Both(const support::Problem& p) : host(make_tensors(p)), call(p, host) {
    int major = 0, minor = 0;
    must(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "device");
    must(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "device");
    must(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), "device");
    kernels = cuda::kernels_for(10 * major + minor);
    if (kernels == nullptr) throw std::runtime_error("no kernels for this GPU");
    arch = major == 10 ? "sm100" : major > 10 ? "sm120" : major == 9 ? "sm90" : minor == 9 ? "sm89" : "sm80";
    plan_gpu(nullptr);
    workspace = Memory(gpu.workspace_bytes);
    plan_gpu(workspace.data());
    emulated_workspace.assign(gpu.workspace_bytes + 64, std::byte{0xff});
    plan_emulated(p);
  }

  void plan_gpu(void* memory) {
    Problem problem;
    Tensors tensors;
    if (make_problem(&call.q, &call.k, &call.v, &call.out, call.lse_view(), &call.params(), false, problem, tensors) !=
            CLARY_OK ||
        make_cuda_plan(problem, tensors, kernels->instances, kernels->name, memory, gpu) != CLARY_OK)
      throw std::runtime_error(clary_last_error());
  }
  void plan_emulated(const support::Problem& p) {
    const clary_attention_params params = make_params(p, host);
    Problem problem;
    Tensors tensors;
    const auto at = reinterpret_cast<uintptr_t>(emulated_workspace.data());
    void* const memory = emulated_workspace.data() + (64 - at % 64) % 64;
    if (make_problem(host.q.view(), host.k.view(), host.v.view(), host.out.view(),
                     host.lse.empty() ? nullptr : host.lse.view(), &params, false, problem, tensors) != CLARY_OK ||
        make_cuda_plan(problem, tensors, kernels->instances, kernels->name, memory, emulated) != CLARY_OK)
      throw std::runtime_error(clary_last_error());
  }
};

// Share of bytes that differ; rounding may fall differently where a compiler fuses a multiplication and an addition.
double bytes_that_differ(const void* gpu, const void* emulated, int64_t bytes) {
  std::vector<unsigned char> a(static_cast<size_t>(bytes));
  must(cudaMemcpy(a.data(), gpu, a.size(), cudaMemcpyDeviceToHost), "download");
  int64_t differ = 0;
  for (int64_t i = 0; i < bytes; ++i)
    differ += a[static_cast<size_t>(i)] != static_cast<const unsigned char*>(emulated)[i];
  return bytes == 0 ? 0 : static_cast<double>(differ) / static_cast<double>(bytes);
}

// The largest difference relative to the largest number.
double floats_that_differ(const float* gpu, const float* emulated, int64_t count) {
  std::vector<float> a(static_cast<size_t>(count));
  must(cudaMemcpy(a.data(), gpu, a.size() * 4, cudaMemcpyDeviceToHost), "download");
  double most = 0, largest = 1e-30;
  for (int64_t i = 0; i < count; ++i) {
    const double difference =
        std::abs(static_cast<double>(a[static_cast<size_t>(i)]) - static_cast<double>(emulated[i]));
    most = difference <= most ? most : difference;  // NaN stays
    if (std::isnan(difference)) return difference;
    largest = std::max(largest, std::abs(static_cast<double>(emulated[i])));
  }
  return most / largest;
}

bool same(const char* what, double difference, double most) {
  if (difference <= most) return true;
  std::printf("  %s differs by %g, allowed %g\n", what, difference, most);
  return false;
}

bool quantisers_agree(Both& b) {
  must(static_cast<cudaError_t>(b.kernels->quantise(b.gpu, nullptr)), "quantiser");
  must(cudaDeviceSynchronize(), "quantiser");
  test::emulate_quantiser(b.emulated);
  const cuda::QuantiseParams &g = b.gpu.quantise, &e = b.emulated.quantise;
  const cuda::Geometry& s = g.shape;
  const int64_t rows = s.heads_q * s.query_tiles() * s.tile_rows, keys = s.heads_kv * s.key_tiles() * s.tile_keys;
  const int64_t qk_row = cuda::qk_row_bytes(g.qk, s.dim);
  bool right = same("packed Q", bytes_that_differ(g.q_image, e.q_image, rows * qk_row), 0.002);
  right &= same("packed K", bytes_that_differ(g.k_image, e.k_image, keys * qk_row), 0.002);
  right &= same("packed V", bytes_that_differ(g.v_image, e.v_image, keys * s.dim * bits_of(g.pv) / 8), 0.002);
  right &= same("flags of keys", bytes_that_differ(g.bad_key, e.bad_key, keys), 0);
  right &= same("scales of V", floats_that_differ(g.v_scale, e.v_scale, s.sequences * s.heads_kv * s.dim), 1e-5);
  if (!smooths(g)) return right;
  right &= same("scales of Q", floats_that_differ(g.q_scale, e.q_scale, rows), 1e-5);
  right &= same("shifts of Q", floats_that_differ(g.q_shift, e.q_shift, rows), 1e-4);
  right &= same("scales of K", floats_that_differ(g.k_scale, e.k_scale, keys / s.tile_keys * 4), 1e-5);
  if (g.smooth_q)
    right &=
        same("addends of keys", floats_that_differ(g.k_bias, e.k_bias, s.heads_q * s.key_tiles() * s.tile_keys), 1e-4);
  return right;
}

bool attention_agrees(Both& b, const support::Problem& p) {
  must(static_cast<cudaError_t>(b.kernels->attend(b.gpu, nullptr, b.processors)), "attention");
  must(cudaDeviceSynchronize(), "attention");
  test::emulate_attention(b.arch, b.emulated);
  const support::Tensor emulated = b.host.out;
  b.call.fetch();
  double most = 0, largest = 1e-30;
  for (int64_t h = 0; h < p.heads_q; ++h)
    for (int64_t i = 0; i < p.len_q; ++i)
      for (int64_t d = 0; d < p.dim_v; ++d) {
        const double difference = std::abs(emulated.at(0, h, i, d) - b.host.out.at(0, h, i, d));
        most = difference <= most ? most : difference;
        if (std::isnan(difference)) return same("out", difference, 0);
        largest = std::max(largest, std::abs(emulated.at(0, h, i, d)));
      }
  return same("out", most / largest, 0.02);
}

}  // namespace

int compare(int* done) {
  int wrong = 0;
  for (const char* precision : {"bf16 exact", "f16 exact", "bf16 int8", "bf16 int4", "f16 int8_f16"})
    for (const char* shape : {"lq128 lk128", "lq128 lk512", "lq300 lk700 causal", "lq70 lk300 mask=bool:0.5"})
      for (const char* dim : {"d32", "d64", "d96", "d128", "d192", "d256"}) {
        const std::string line = std::string("hq2 hkv1 ") + shape + ' ' + dim + ' ' + precision;
        const support::Problem p = support::parse_problem(line);
        Both both(p);
        const bool right = quantisers_agree(both) && attention_agrees(both, p);
        if (!right) std::printf("WRONG \"%s\": not as emulated\n", line.c_str());
        ++*done, wrong += !right;
      }
  return wrong;
}

}  // namespace clary::check
