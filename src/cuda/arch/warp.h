// Threads, warps and blocks.
#pragma once

#include "cuda/layout/target.h"

namespace clary::cuda {

struct WarpOps {
  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ __forceinline__ int threads() { return static_cast<int>(blockDim.x); }
  static __device__ __forceinline__ int64_t block_x() { return blockIdx.x; }
  static __device__ __forceinline__ int64_t block_y() { return blockIdx.y; }
  static __device__ __forceinline__ int64_t block_z() { return blockIdx.z; }
  static __device__ __forceinline__ int64_t blocks_x() { return gridDim.x; }

  template <class T>
  static __device__ __forceinline__ T shuffle_xor(T value, int lanes) {
    return __shfl_xor_sync(~0u, value, lanes);
  }
  // Whether all lanes say so. The result is provably uniform: what hangs on it stays in uniform registers.
  static __device__ __forceinline__ bool all(bool value) { return __all_sync(~0u, value) != 0; }
  static __device__ __forceinline__ uint32_t ballot(bool value) { return __ballot_sync(~0u, value); }
  static __device__ __forceinline__ int trailing_zeros(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }
  static __device__ __forceinline__ void sync() { __syncthreads(); }
  static __device__ __forceinline__ bool sync_or(bool value) { return __syncthreads_or(value) != 0; }
};

}  // namespace clary::cuda
