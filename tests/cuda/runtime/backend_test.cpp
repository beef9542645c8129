// The backend (src/cuda/launch) on a made-up CUDA runtime: which kernels go where, and every refusal that a machine has
// to be in a certain state for. Its launches compute nothing.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "support/harness.h"

namespace clary::test {
namespace {

struct Launch {
  const void* kernel;
  dim3 grid, block;
  cudaStream_t stream;
  int device;
};

struct FakeRuntime {
  int driver = CUDART_VERSION, devices = 2, current = 0, capability = 90, processors = 132;
  cudaError_t count_error = cudaSuccess, last_error = cudaSuccess;
  std::map<const void*, cudaPointerAttributes> pointers;  // all others: memory of `home`
  int home = 0;
  int failing_launch = -1;
  std::map<const void*, int> shared_bytes;  // what kernels may have
  std::vector<Launch> launches;

  cudaError_t report(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
  }
};
FakeRuntime fake;

}  // namespace
}  // namespace clary::test

using clary::test::fake;

extern "C" {
cudaError_t __wrap_cudaDriverGetVersion(int* version) { return *version = fake.driver, cudaSuccess; }
cudaError_t __wrap_cudaGetDeviceCount(int* count) {
  *count = fake.count_error == cudaSuccess ? fake.devices : 0;
  return fake.report(fake.count_error);
}
cudaError_t __wrap_cudaGetDevice(int* device) { return *device = fake.current, cudaSuccess; }
cudaError_t __wrap_cudaSetDevice(int device) { return fake.current = device, cudaSuccess; }
cudaError_t __wrap_cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor   ? fake.capability / 10
           : attribute == cudaDevAttrComputeCapabilityMinor ? fake.capability % 10
                                                            : fake.processors;
  return cudaSuccess;
}
cudaError_t __wrap_cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const auto known = fake.pointers.find(pointer);
  *attributes = {};
  attributes->type = cudaMemoryTypeDevice, attributes->device = fake.home;
  if (known != fake.pointers.end()) *attributes = known->second;
  return cudaSuccess;
}
cudaError_t __wrap_cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > (fake.capability / 10 == 9 ? 227 : 99) * 1024) return fake.report(cudaErrorInvalidValue);
  return fake.shared_bytes[kernel] = bytes, cudaSuccess;
}
cudaError_t __wrap_cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t bytes,
                                    cudaStream_t stream) {
  const auto allowed = fake.shared_bytes.find(kernel);
  if (bytes > (allowed == fake.shared_bytes.end() ? 48u * 1024 : static_cast<size_t>(allowed->second)) || grid.x == 0 ||
      grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535 || block.x > 1024)
    return fake.report(cudaErrorInvalidValue);
  fake.launches.push_back({kernel, grid, block, stream, fake.current});
  const bool fails = static_cast<int>(fake.launches.size()) - 1 == fake.failing_launch;
  return fake.report(fails ? cudaErrorLaunchOutOfResources : cudaSuccess);
}
cudaError_t __wrap_cudaGetLastError() { return std::exchange(fake.last_error, cudaSuccess); }
}

namespace clary::test {
namespace {

// A problem whose tensors the runtime takes for memory of the device.
struct DeviceCall {
  explicit DeviceCall(const std::string& line, int device = 0)
      : problem(support::parse_problem(line)), tensors(make_tensors(problem)), params(make_params(problem, tensors)) {
    const support::Tensor* const sources[] = {&tensors.q, &tensors.k, &tensors.v, &tensors.out, &tensors.lse};
    for (int i = 0; i < 5; ++i) views[i] = on_device(*sources[i], device);
    if (!tensors.mask.empty()) mask = on_device(tensors.mask, device), params.mask = &mask;
    params.stream = &stream;
    size_t bytes = 0;
    if (query(&bytes) != CLARY_OK) return;
    workspace.resize(bytes + 64);
    params.workspace = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) % 64;
    params.workspace_bytes = bytes;
  }
  clary_status query(size_t* bytes) {
    return clary_cuda_workspace_bytes(&views[0], &views[1], &views[2], &views[3], lse(), &params, bytes);
  }
  clary_status run() { return clary_attention(&views[0], &views[1], &views[2], &views[3], lse(), &params, nullptr); }
  const clary_tensor* lse() const { return tensors.lse.empty() ? nullptr : &views[4]; }
  static clary_tensor on_device(const support::Tensor& tensor, int device) {
    clary_tensor view = *tensor.view();
    view.device_type = 2, view.device_id = device;
    return view;
  }

  Problem problem;
  Tensors tensors;
  clary_attention_params params;
  clary_tensor views[5] = {}, mask = {};
  std::vector<char> workspace;
  int stream = 0;  // its address stands for a stream
};

class CudaBackend : public testing::Test {
 protected:
  void SetUp() override { fake = {}; }
  // Whatever was refused: nothing is left behind for the caller to find.
  void TearDown() override {
    EXPECT_EQ(fake.last_error, cudaSuccess);
    EXPECT_EQ(fake.current, 0);
  }
  // Runs, expects a refusal before anything is launched.
  static void expect_refusal(DeviceCall& call, clary_status status, const std::string& text) {
    fake.launches.clear();
    EXPECT_EQ(call.run(), status) << text;
    EXPECT_NE(std::string(clary_last_error()).find(text), std::string::npos) << clary_last_error() << "\n" << text;
    EXPECT_TRUE(fake.launches.empty());
  }
};

constexpr const char* kLine = "hq4 hkv2 lq300 lk700 d64 bf16 int8 mask=bool:0.5";

TEST_F(CudaBackend, LaunchesOnTheStreamAndNowhereElse) {
  std::map<const void*, int> arch_of_kernel;
  for (const int capability : {80, 86, 89, 90, 100, 103, 110, 120, 121})
    for (const char* precision : {"exact", "int8", "int4", "int8_f16"}) {
      fake = {}, fake.capability = capability;
      DeviceCall call("hq4 hkv2 lq300 lk700 d128 bf16 mask=bool:0.5 " + std::string(precision));
      ASSERT_EQ(call.run(), CLARY_OK) << capability << ' ' << clary_last_error();
      EXPECT_EQ(fake.launches.size(), std::string(precision) == "exact" ? 3u : 4u);
      for (const Launch& launch : fake.launches) {
        EXPECT_EQ(launch.stream, static_cast<void*>(&call.stream));
        // One file's kernels per architecture: sm_86 shares those of sm_80, and so on.
        const int file = capability >= 110 ? 120 : capability >= 100 ? 100 : capability == 86 ? 80 : capability;
        EXPECT_EQ(arch_of_kernel.try_emplace(launch.kernel, file).first->second, file);
      }
    }
}

TEST_F(CudaBackend, PersistentBlocksAreAsManyAsProcessors) {
  for (const int processors : {1, 5, 1000}) {
    fake.processors = processors;
    DeviceCall call("hq4 hkv2 lq300 lk700 d64 bf16 int8");
    fake.launches.clear();
    ASSERT_EQ(call.run(), CLARY_OK) << clary_last_error();
    EXPECT_EQ(fake.launches.back().grid.x, static_cast<unsigned>(std::min(processors, 4 * 3)));
  }
}

TEST_F(CudaBackend, RunsOnTheDeviceOfTheTensors) {
  fake.home = 1;
  DeviceCall call(kLine, 1);
  ASSERT_EQ(call.run(), CLARY_OK) << clary_last_error();
  ASSERT_FALSE(fake.launches.empty());
  for (const Launch& launch : fake.launches) EXPECT_EQ(launch.device, 1);
}

TEST_F(CudaBackend, NamesDriversAndDevices) {
  DeviceCall call(kLine);
  size_t bytes = 0;
  fake.driver = 0;
  expect_refusal(call, CLARY_UNSUPPORTED, "this machine has no NVIDIA driver");
  fake.driver = 11080, fake.count_error = cudaErrorInsufficientDriver;
  expect_refusal(call, CLARY_UNSUPPORTED,
                 "the NVIDIA driver serves CUDA 11.8, too old for this library's CUDA " +
                     std::to_string(CUDART_VERSION / 1000) + '.' + std::to_string(CUDART_VERSION % 1000 / 10));
  EXPECT_EQ(call.query(&bytes), CLARY_UNSUPPORTED);
  fake.count_error = cudaErrorNoDevice;
  expect_refusal(call, CLARY_UNSUPPORTED, "the driver shows no device");
  fake.count_error = cudaErrorSystemNotReady;
  expect_refusal(call, CLARY_INTERNAL, "asking for devices: cudaErrorSystemNotReady");
  fake.count_error = cudaSuccess, fake.devices = 0;
  expect_refusal(call, CLARY_UNSUPPORTED, "the driver shows no device");
  fake.devices = 2;
  for (clary_tensor& view : call.views) view.device_id = 7;
  call.mask.device_id = 7;
  expect_refusal(call, CLARY_INVALID_ARGUMENT, "q: device_id is 7, there are 2 devices");
}

TEST_F(CudaBackend, NamesArchitecturesWithoutKernels) {
  DeviceCall call(kLine);
  size_t bytes = 0;
  for (const int capability : {50, 70, 75}) {
    fake.capability = capability;
    const std::string text = "device 0 has compute capability " + std::to_string(capability / 10) + '.' +
                             std::to_string(capability % 10) + ", there are kernels for 8.0 and later";
    expect_refusal(call, CLARY_UNSUPPORTED, text);
    EXPECT_EQ(call.query(&bytes), CLARY_UNSUPPORTED);
  }
}

TEST_F(CudaBackend, NamesPointersOfOtherMemory) {
  DeviceCall call(kLine);
  const std::pair<const char*, const void*> pointers[] = {
      {"q", call.views[0].data},           {"k", call.views[1].data},   {"v", call.views[2].data},
      {"out", call.views[3].data},         {"lse", call.views[4].data}, {"mask", call.mask.data},
      {"workspace", call.params.workspace}};
  for (const auto& [name, pointer] : pointers) {
    ASSERT_NE(pointer, nullptr) << name;
    for (const cudaMemoryType host : {cudaMemoryTypeUnregistered, cudaMemoryTypeHost}) {
      fake.pointers = {{pointer, {host, 0, nullptr, nullptr, {}}}};
      expect_refusal(call, CLARY_INVALID_ARGUMENT, std::string(name) + ": points to host memory");
    }
    fake.pointers = {{pointer, {cudaMemoryTypeDevice, 1, nullptr, nullptr, {}}}};
    expect_refusal(call, CLARY_INVALID_ARGUMENT, std::string(name) + ": is memory of device 1, q is on device 0");
    fake.pointers = {{pointer, {cudaMemoryTypeManaged, 1, nullptr, nullptr, {}}}};
    EXPECT_EQ(call.run(), CLARY_OK) << clary_last_error();
  }
}

TEST_F(CudaBackend, NamesWorkspacesThatDoNotFit) {
  DeviceCall call(kLine);
  --call.params.workspace_bytes;
  expect_refusal(call, CLARY_INVALID_ARGUMENT, "workspace: has " + std::to_string(call.params.workspace_bytes));
  ++call.params.workspace_bytes;
  call.params.workspace = static_cast<char*>(call.params.workspace) + 4;
  expect_refusal(call, CLARY_INVALID_ARGUMENT, "not aligned to 64 bytes");
  call.params.workspace = nullptr;
  expect_refusal(call, CLARY_INVALID_ARGUMENT, "workspace: has 0 bytes");
}

// A launch that fails ends the call there, and the next call is whole again.
TEST_F(CudaBackend, AFailedLaunchLeavesTheContextUsable) {
  fake.home = 1;
  DeviceCall call(kLine, 1);
  for (int failing = 0; failing < 4; ++failing) {
    fake.launches.clear(), fake.failing_launch = failing;
    EXPECT_EQ(call.run(), CLARY_INTERNAL);
    const std::string why = failing < 3 ? "launching the quantiser" : "launching attention";
    EXPECT_NE(std::string(clary_last_error()).find(why + ": cudaErrorLaunchOutOfResources"), std::string::npos)
        << clary_last_error();
    EXPECT_EQ(fake.launches.size(), static_cast<size_t>(failing) + 1);
    EXPECT_EQ(fake.last_error, cudaSuccess);
    EXPECT_EQ(fake.current, 0);
    fake.launches.clear(), fake.failing_launch = -1;
    EXPECT_EQ(call.run(), CLARY_OK) << clary_last_error();
    EXPECT_EQ(fake.launches.size(), 4u);
  }
}

}  // namespace
}  // namespace clary::test
