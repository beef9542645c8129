// sm_90: barriers in shared memory that count bytes, bulk copies by the TMA unit, named barriers, and registers given
// from one warp group to another.
#pragma once

#include "cuda/layout/target.h"

namespace clary::cuda {

struct BarrierOps {
  // A barrier completes a phase when `count` threads have arrived and all bytes expected have come.
  static __device__ __forceinline__ void barrier_init(uint32_t barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
  }
  // Makes the initialised barriers visible to the copies.
  static __device__ __forceinline__ void barrier_init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  // Makes this thread's writes to shared memory visible to wgmma.
  static __device__ __forceinline__ void shared_writes_done() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  static __device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
  }
  static __device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
  }
  // Has the phase of this parity completed?
  static __device__ __forceinline__ bool barrier_test(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return done != 0;
  }
  // One thread waits.
  static __device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    while (!barrier_test(barrier, parity)) {}
  }
  // A converged warp waits. The vote makes the branch provably uniform: descriptors stay in uniform registers.
  static __device__ __forceinline__ void barrier_wait_warp(uint32_t barrier, uint32_t parity) {
    while (!__all_sync(~0u, barrier_test(barrier, parity))) {}
  }
  // `bytes` (a multiple of 16) from global to shared memory; they count on the barrier.
  static __device__ __forceinline__ void copy_bulk(uint32_t to, const void* from, int bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
  }
  // Named barriers 1 and 2 of two warp groups: a wait is over when the other group has passed. Their numbers are
  // constants under a uniform predicate; a number in a register would take all 16 barriers.
  static __device__ __forceinline__ void turn_wait(int id) {
    asm volatile("{\n.reg .pred p;\nsetp.eq.s32 p, %0, 1;\n@p bar.sync 1, 256;\n@!p bar.sync 2, 256;\n}\n" ::"r"(id)
                 : "memory");
  }
  static __device__ __forceinline__ void turn_pass(int id) {
    asm volatile("{\n.reg .pred p;\nsetp.eq.s32 p, %0, 1;\n@p bar.arrive 1, 256;\n@!p bar.arrive 2, 256;\n}\n" ::"r"(id)
                 : "memory");
  }
  template <int kRegisters>
  static __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
  }
  template <int kRegisters>
  static __device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
  }
};

}  // namespace clary::cuda
