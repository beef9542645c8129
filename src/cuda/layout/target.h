// Code that runs on the GPU and on the host. Kernels and layouts are plain C++ over a machine (HACKING.md, "The GPU
// backend"): nvcc compiles them for the device, the host compiler for the emulator of the tests.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CLARY_DEVICE __device__ __forceinline__
#define CLARY_ANYWHERE __host__ __device__ __forceinline__ constexpr
#else
#define CLARY_DEVICE inline
#define CLARY_ANYWHERE inline constexpr
#endif

namespace clary::cuda {

// Element types of tensor-core operands.
enum class Element : uint8_t { s8, s4, f16, bf16, e4m3 };

CLARY_ANYWHERE int bits_of(Element e) { return e == Element::s4 ? 4 : e == Element::s8 || e == Element::e4m3 ? 8 : 16; }
CLARY_ANYWHERE bool is_integer(Element e) { return e == Element::s8 || e == Element::s4; }

// What one 16-byte access moves.
struct alignas(16) Words {
  uint32_t w[4];
};

CLARY_ANYWHERE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
CLARY_ANYWHERE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
CLARY_ANYWHERE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace clary::cuda
