// Kernels of sm_90 that clary_gpu_check times beside those that ship.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <tuple>

#include "cuda/attention/variants.h"
#include "cuda/emulated.h"
#include "cuda/emulator/machine.h"

namespace clary::test {
namespace {

template <class C>
void variant_is_right() {
  const char* const precision = is_integer(C::kQk) ? " bf16 int8" : " bf16 exact";
  const Problem p = support::parse_problem("hq1 hkv1 lq150 lk700 causal d" + std::to_string(C::kDim) + precision);
  const Tamper tamper = [](cuda::CudaPlan& plan) {
    emulated::launch({2, 1, 1}, C::kThreads, C::kSharedBytes,
                     [&plan] { C::template Kernel<emulated::Machine>::run(plan.attention, 0); });
    return true;
  };
  EXPECT_TRUE(emulated_runs_right("sm90", p, tamper)) << C::kStages << ' ' << C::kSpecial << ' ' << C::kTurns;
}
template <class... Configs>
void variants_are_right(cuda::KernelList<Configs...> list) {
  (variant_is_right<Configs>(), ...);
  std::set<std::tuple<int, int, int, int, bool>> kinds = {{64, 8, 6, 4, true},
                                                          {96, 8, 6, 6, true},
                                                          {128, 8, 4, 8, true},
                                                          {256, 8, 3, 8, true},
                                                          {128, 16, 2, 8, true}};  // those that ship
  const auto knobs = cuda::knobs_of(list);
  const int dims[] = {Configs::kDim...}, bits[] = {bits_of(Configs::kPv)...};
  for (size_t i = 0; i < knobs.size(); ++i)
    EXPECT_TRUE(kinds.insert({dims[i], bits[i], knobs[i].stages, knobs[i].special, knobs[i].turns}).second) << i;
}
TEST(CudaVariants, AreRightAndDiffer) { variants_are_right(cuda::VariantsSm90()); }

}  // namespace
}  // namespace clary::test
