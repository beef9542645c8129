// Shared memory by 32-bit address: plain access, ldmatrix, and cp.async (sm_80).
#pragma once

#include "cuda/layout/target.h"

namespace clary::cuda {

struct SharedOps {
  static __device__ __forceinline__ uint32_t load_shared(uint32_t address) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
  }
  static __device__ __forceinline__ void store_shared(uint32_t address, uint32_t v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
  }
  static __device__ __forceinline__ Words load_shared_16(uint32_t address) {
    Words v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
                 : "r"(address)
                 : "memory");
    return v;
  }
  // The largest of what all threads offer, as non-negative floats compare like integers.
  static __device__ __forceinline__ void maximum_shared(uint32_t address, uint32_t v) {
    asm volatile("red.shared.max.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
  }

  // Four 8 x 16-byte matrices (layout/fragments.h).
  static __device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }

  // 16 bytes from global to shared memory, past L1 (a tile is read once by a block).
  static __device__ __forceinline__ void copy_16(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  }
  static __device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
  template <int kPending>
  static __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
  }
};

}  // namespace clary::cuda
