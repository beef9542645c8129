// What every launch file is made of: kernels around the templates, and a table of them.
//
// Kernels are templates over the machine's struct, which each launch file defines for itself: the same template in two
// files would be one symbol, and the linker would keep the code of one architecture.
#pragma once

#include <array>
#include <type_traits>

#include <cuda_runtime_api.h>

#include "cuda/arch/convert.h"
#include "cuda/arch/mma_sync.h"
#include "cuda/arch/shared.h"
#include "cuda/arch/warp.h"
#include "cuda/attention/kernels.h"
#include "cuda/launch/kernels.h"
#include "cuda/quantise/classes.h"
#include "cuda/quantise/pack.h"
#include "cuda/quantise/statistics.h"

namespace clary::cuda {

// Swizzles and descriptors count from multiples of 1024.
extern __shared__ __align__(1024) uint8_t dynamic_shared[];

__device__ __forceinline__ uint32_t shared_base() {
  return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared));
}

template <class M>
__global__ void __launch_bounds__(kQuantiseThreads) statistics_kernel(const __grid_constant__ QuantiseParams p) {
  Statistics<M>::run(p, shared_base());
}
template <class M>
__global__ void __launch_bounds__(kQuantiseThreads) pack_kernel(const __grid_constant__ QuantiseParams p) {
  pack<M>(p, shared_base());
}
template <class M>
__global__ void __launch_bounds__(kClassThreads) classify_kernel(const __grid_constant__ ClassParams p) {
  classify<M>(p);
}
// The 1 is the least number of blocks per SM: with it ptxas has a cap on registers, without which it ignores
// setmaxnreg.
template <class M, class C>
__global__ void __launch_bounds__(C::kThreads, 1) attention_kernel(const __grid_constant__ AttentionParams p) {
  C::template Kernel<M>::run(p, shared_base());
}

inline dim3 grid_of(const GridSize& size) {
  return dim3(static_cast<unsigned>(size.x), static_cast<unsigned>(size.y), static_cast<unsigned>(size.z));
}

// The limit of dynamic shared memory is an attribute of the kernel on the current device; asking for it twice is cheap.
template <class Params>
cudaError_t enqueue(void (*kernel)(Params), dim3 grid, int threads, int shared_bytes, cudaStream_t stream,
                    const Params& params) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  void* arguments[] = {const_cast<Params*>(&params)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(static_cast<unsigned>(threads)), arguments,
                          static_cast<size_t>(shared_bytes), stream);
}

template <class M>
int quantise(const CudaPlan& plan, void* to) {
  const cudaStream_t stream = static_cast<cudaStream_t>(to);
  cudaError_t error = cudaSuccess;
  if (plan.has_statistics)
    error = enqueue<QuantiseParams>(statistics_kernel<M>, grid_of(plan.statistics), kQuantiseThreads,
                                    kStatisticsSharedBytes, stream, plan.quantise);
  if (error == cudaSuccess)
    error = enqueue<QuantiseParams>(pack_kernel<M>, grid_of(plan.pack), kQuantiseThreads, plan.pack_shared_bytes,
                                    stream, plan.quantise);
  if (error == cudaSuccess && plan.has_classes)
    error = enqueue<ClassParams>(classify_kernel<M>, grid_of(plan.survey), kClassThreads, 0, stream, plan.classes);
  return error;
}

template <class M, class List>
struct Launcher;
template <class M, class... Configs>
struct Launcher<M, KernelList<Configs...>> {
  static constexpr std::array<Instance, sizeof...(Configs)> kInstances = {
      describe_instance<Configs>(Configs::kPersistent)...};

  static int attend(const CudaPlan& plan, void* stream, int processors) {
    static constexpr std::array<void (*)(AttentionParams), sizeof...(Configs)> kKernels = {
        attention_kernel<M, Configs>...};
    const size_t index = static_cast<size_t>(plan.instance - kInstances.data());
    const int64_t blocks = plan.instance->persistent ? smaller(plan.items, processors) : plan.items;
    return enqueue<AttentionParams>(kKernels[index], dim3(static_cast<unsigned>(blocks)), plan.instance->threads,
                                    plan.instance->shared_bytes, static_cast<cudaStream_t>(stream), plan.attention);
  }
};

template <class M, class List>
const ArchKernels& arch_kernels(const char* name) {
  static const ArchKernels kernels = {name, Launcher<M, List>::kInstances, &quantise<M>, &Launcher<M, List>::attend};
  return kernels;
}

}  // namespace clary::cuda
