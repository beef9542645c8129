// Kernels of sm_90 beside those that ship: what decides the speed and cannot be known without a GPU. `clary_gpu_check
// variants` times them on the same packed arrays; none of them is in the library.
#pragma once

#include <array>

#include "cuda/attention/kernels.h"

namespace clary::cuda {

// What a variant differs in.
struct WgmmaKnobs {
  int stages, special;
  bool turns;
};
template <class C>
constexpr WgmmaKnobs describe_knobs() {
  return {C::kStages, C::kSpecial, C::kTurns};
}

template <int kDim, int kStages, int kSpecial, bool kTurns = true>
using Variant8 = WgmmaConfig<Element::s8, Element::e4m3, kDim, 128, kStages, kSpecial, kTurns>;
template <int kDim, int kKeys, int kStages>
using Variant16 = WgmmaConfig<Element::bf16, Element::bf16, kDim, kKeys, kStages, 8, false>;

// At dim 64, every share of integer exponentials; else one step from what ships (kernels.h).
using VariantsSm90 =
    KernelList<Variant8<64, 6, 0>, Variant8<64, 6, 2>, Variant8<64, 6, 6>, Variant8<64, 6, 8>, Variant8<64, 2, 4>,
               Variant8<64, 6, 4, false>, Variant8<96, 6, 4>, Variant8<96, 6, 8>, Variant8<128, 4, 6>,
               Variant8<128, 4, 4>, Variant8<128, 2, 8>, Variant8<128, 4, 8, false>, Variant8<256, 2, 8>,
               Variant8<256, 3, 8, false>, Variant16<128, 128, 2>>;

template <class... Configs>
constexpr std::array<WgmmaKnobs, sizeof...(Configs)> knobs_of(KernelList<Configs...>) {
  return {describe_knobs<Configs>()...};
}

}  // namespace clary::cuda
