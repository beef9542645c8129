// Kernels on machines that forget to wait. On a GPU that is a race, which shows when it likes; here it must show.
#include <gtest/gtest.h>

#include "cuda/attention/kernels.h"
#include "cuda/emulated.h"
#include "cuda/emulator/machine.h"

namespace clary::test {
namespace {

using emulated::Machine;

struct NoCopyWait : Machine {
  template <int kPending>
  static void copy_wait() {}
};
struct NoProductWait : Machine {
  template <int kPending>
  static void wait_products() {}
};
// Does not wait for copied bytes: every phase looks complete to consumers.
struct NoBarrierWait : Machine {
  static void barrier_wait_warp(uint32_t, uint32_t) { all(true); }
};

template <class M, class C>
bool runs_right() {
  using Kernel = typename C::template Kernel<M>;
  const Problem p = support::parse_problem("hq1 hkv1 lq128 lk1024 d64 bf16 int8");
  const Tamper tamper = [](cuda::CudaPlan& plan) {
    emulated::launch({1, 1, 1}, C::kThreads, C::kSharedBytes, [&plan] { Kernel::run(plan.attention, 0); });
    return true;
  };
  return static_cast<bool>(emulated_runs_right(C::kPersistent ? "sm90" : "sm89", p, tamper));
}

using Mma = cuda::Mma<cuda::Element::s8, cuda::Element::e4m3, 64>;
using Wgmma = cuda::WgmmaConfig<cuda::Element::s8, cuda::Element::e4m3, 64, 128, 6, 4>;

TEST(CudaCareless, ForgottenWaitsAreSeen) {
  EXPECT_TRUE((runs_right<Machine, Mma>()));
  EXPECT_TRUE((runs_right<Machine, Wgmma>()));
  EXPECT_FALSE((runs_right<NoCopyWait, Mma>()));
  EXPECT_FALSE((runs_right<NoProductWait, Wgmma>()));
}

TEST(CudaCarelessDeathTest, UnfilledBuffersAreSeen) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  // Either the numbers are wrong or the stages run ahead of their barriers.
  EXPECT_DEATH(
      {
        if (runs_right<NoBarrierWait, Wgmma>()) std::exit(0);
        std::abort();
      },
      "");
}

}  // namespace
}  // namespace clary::test
