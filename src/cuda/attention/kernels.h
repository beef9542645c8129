// Which kernels each architecture has. One list, for the launch files and for the emulated tests.
#pragma once

#include "cuda/attention/instances.h"
#include "cuda/attention/mma_attention.h"
#include "cuda/attention/wgmma_attention.h"

namespace clary::cuda {

template <class... Configs>
struct KernelList {};

template <class A, class B>
struct Joined;
template <class... A, class... B>
struct Joined<KernelList<A...>, KernelList<B...>> {
  using Type = KernelList<A..., B...>;
};

template <Element kQk, Element kPv, int kDim>
using Mma = MmaConfig<kQk, kPv, kDim, mma_strips(kDim), mma_keys(kPv, kDim)>;
template <Element kQk, Element kPv>
using MmaDims = KernelList<Mma<kQk, kPv, 32>, Mma<kQk, kPv, 64>, Mma<kQk, kPv, 96>, Mma<kQk, kPv, 128>,
                           Mma<kQk, kPv, 192>, Mma<kQk, kPv, 256>>;

// 16 bits, and INT8 with 16-bit P V: everywhere.
using MmaCommon = Joined<Joined<MmaDims<Element::f16, Element::f16>, MmaDims<Element::bf16, Element::bf16>>::Type,
                         MmaDims<Element::s8, Element::f16>>::Type;
// FP8 P V: sm_89 and later. 4-bit products: sm_80 to sm_89.
using MmaFp8 = MmaDims<Element::s8, Element::e4m3>;
using KernelsSm80 = Joined<MmaCommon, MmaDims<Element::s4, Element::f16>>::Type;
using KernelsSm89 = Joined<Joined<MmaCommon, MmaFp8>::Type, MmaDims<Element::s4, Element::e4m3>>::Type;
// sm_90: wgmma with as many stages as shared memory holds, up to six; INT8 with 16-bit P V by mma.sync. Half of the
// exponentials at dim 64, a quarter at 96, are integer arithmetic: the special function unit would be the bound. At 128
// it is no more so than the tensor core, and registers are scarce. Dim 32 runs on 64: softmax is the bound of both.
template <Element kQk, Element kPv>
using Wgmma8 = KernelList<WgmmaConfig<kQk, kPv, 64, 128, 6, 4>, WgmmaConfig<kQk, kPv, 96, 128, 6, 6>,
                          WgmmaConfig<kQk, kPv, 128, 128, 4>, WgmmaConfig<kQk, kPv, 192, 128, 4>,
                          WgmmaConfig<kQk, kPv, 256, 128, 3>>;
template <Element kQk, Element kPv>
using Wgmma16 =
    KernelList<WgmmaConfig<kQk, kPv, 64, 128, 4>, WgmmaConfig<kQk, kPv, 96, 128, 4>, WgmmaConfig<kQk, kPv, 128, 128, 2>,
               WgmmaConfig<kQk, kPv, 192, 64, 3>, WgmmaConfig<kQk, kPv, 256, 64, 2>>;
using WgmmaAll = Joined<Joined<Wgmma8<Element::s8, Element::e4m3>, Wgmma16<Element::f16, Element::f16>>::Type,
                        Wgmma16<Element::bf16, Element::bf16>>::Type;
using KernelsSm90 = Joined<WgmmaAll, MmaDims<Element::s8, Element::f16>>::Type;
// sm_100 multiplies e4m3 by mma.sync only after widening it, in more instructions than f16 takes.
using KernelsSm100 = MmaCommon;
using KernelsSm120 = Joined<MmaCommon, MmaFp8>::Type;

}  // namespace clary::cuda
