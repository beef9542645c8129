// Which device, which kernels, and what can be wrong with them, in words. Uses the CUDA runtime, linked statically: the
// driver's library is opened by it when a CUDA call is made, and not before.
#include "cuda/backend.h"

#include <cuda_runtime_api.h>

#include "core/status.h"
#include "cuda/launch/kernels.h"

namespace clary::cuda {
namespace {

// The runtime keeps the last error until it is asked for: whoever asks next, after a launch of their own, must not find
// what was reported here.
cudaError_t taken(cudaError_t error) {
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error;
}

clary_status check(cudaError_t error, const char* what) {
  if (taken(error) == cudaSuccess) return CLARY_OK;
  return fail(CLARY_INTERNAL, "%s: %s (%s)", what, cudaGetErrorName(error), cudaGetErrorString(error));
}

clary_status check_driver(int wanted) {
  int version = 0, count = 0;
  if (taken(cudaDriverGetVersion(&version)) != cudaSuccess || version == 0)
    return fail(CLARY_UNSUPPORTED, "q: is on device_type 2 (CUDA), and this machine has no NVIDIA driver");
  const cudaError_t error = taken(cudaGetDeviceCount(&count));
  if (error == cudaErrorInsufficientDriver)
    return fail(CLARY_UNSUPPORTED, "the NVIDIA driver serves CUDA %d.%d, too old for this library's CUDA %d.%d",
                version / 1000, version % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    return fail(CLARY_UNSUPPORTED, "q: is on device_type 2 (CUDA), and the driver shows no device");
  CLARY_TRY(check(error, "asking for devices"));
  if (wanted < 0 || wanted >= count)
    return fail(CLARY_INVALID_ARGUMENT, "q: device_id is %d, there are %d devices", wanted, count);
  return CLARY_OK;
}

// Makes the tensors' device current for the call, and the caller's again afterwards.
class CurrentDevice {
 public:
  clary_status enter(int id) {
    CLARY_TRY(check(cudaGetDevice(&before_), "asking for the current device"));
    changed_ = before_ != id;
    return changed_ ? check(cudaSetDevice(id), "making q's device current") : CLARY_OK;
  }
  CurrentDevice() = default;
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

clary_status find_kernels(int id, const ArchKernels** kernels, int* processors) {
  int major = 0, minor = 0;
  CLARY_TRY(check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id), "asking for the device"));
  CLARY_TRY(check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, id), "asking for the device"));
  CLARY_TRY(check(cudaDeviceGetAttribute(processors, cudaDevAttrMultiProcessorCount, id), "asking for the device"));
  *kernels = kernels_for(10 * major + minor);
  if (*kernels == nullptr)
    return fail(CLARY_UNSUPPORTED, "q: device %d has compute capability %d.%d, there are kernels for 8.0 and later", id,
                major, minor);
  return CLARY_OK;
}

clary_status check_pointer(const char* what, const void* pointer, int id) {
  if (pointer == nullptr) return CLARY_OK;
  cudaPointerAttributes attributes{};
  CLARY_TRY(check(cudaPointerGetAttributes(&attributes, pointer), what));
  if (attributes.type == cudaMemoryTypeManaged) return CLARY_OK;
  if (attributes.type != cudaMemoryTypeDevice)
    return fail(CLARY_INVALID_ARGUMENT, "%s: points to host memory, but q is on device_type 2 (CUDA)", what);
  if (attributes.device != id)
    return fail(CLARY_INVALID_ARGUMENT, "%s: is memory of device %d, q is on device %d", what, attributes.device, id);
  return CLARY_OK;
}

clary_status check_pointers(const Problem& p, const Tensors& t) {
  const int id = p.device.id;
  CLARY_TRY(check_pointer("q", t.q, id));
  CLARY_TRY(check_pointer("k", p.len_k > 0 ? t.k : nullptr, id));
  CLARY_TRY(check_pointer("v", p.len_k > 0 ? t.v : nullptr, id));
  CLARY_TRY(check_pointer("out", t.out, id));
  CLARY_TRY(check_pointer("lse", t.lse, id));
  CLARY_TRY(check_pointer("mask", p.len_k > 0 ? p.mask.data : nullptr, id));
  CLARY_TRY(check_pointer("alibi_slopes", p.alibi_slopes, id));
  CLARY_TRY(check_pointer("sinks", p.sinks, id));
  CLARY_TRY(check_pointer("cu_seqlens_q", p.cu_seqlens_q, id));
  CLARY_TRY(check_pointer("cu_seqlens_k", p.cu_seqlens_k, id));
  return check_pointer("workspace", p.device.workspace, id);
}

}  // namespace

const ArchKernels* kernels_for(int capability) {
  if (capability / 10 == 10) return &kernels_sm100();
  if (capability >= 100) return &kernels_sm120();
  if (capability >= 90) return &kernels_sm90();
  if (capability == 89) return &kernels_sm89();
  return capability >= 80 ? &kernels_sm80() : nullptr;
}

clary_status attention(const Problem& problem, const Tensors& tensors) {
  CLARY_TRY(check_driver(problem.device.id));
  CurrentDevice current;
  CLARY_TRY(current.enter(problem.device.id));
  const ArchKernels* kernels = nullptr;
  int processors = 0;
  CLARY_TRY(find_kernels(problem.device.id, &kernels, &processors));
  CudaPlan plan;
  CLARY_TRY(make_cuda_plan(problem, tensors, kernels->instances, kernels->name, nullptr, plan));
  if (is_empty(problem)) return CLARY_OK;
  CLARY_TRY(check_pointers(problem, tensors));
  CLARY_TRY(check_workspace(problem.device, plan.workspace_bytes));
  CLARY_TRY(make_cuda_plan(problem, tensors, kernels->instances, kernels->name, problem.device.workspace, plan));
  void* const stream = problem.device.stream;
  CLARY_TRY(check(static_cast<cudaError_t>(kernels->quantise(plan, stream)), "launching the quantiser"));
  return check(static_cast<cudaError_t>(kernels->attend(plan, stream, processors)), "launching attention");
}

clary_status workspace_bytes(const Problem& problem, size_t& bytes) {
  CLARY_TRY(check_driver(problem.device.id));
  const ArchKernels* kernels = nullptr;
  int processors = 0;
  CLARY_TRY(find_kernels(problem.device.id, &kernels, &processors));
  CudaPlan plan;
  CLARY_TRY(make_cuda_plan(problem, {}, kernels->instances, kernels->name, nullptr, plan));
  bytes = is_empty(problem) ? 0 : plan.workspace_bytes;
  return CLARY_OK;
}

}  // namespace clary::cuda
