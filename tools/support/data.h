// Numbers for described problems: the same on every compiler and machine, in any order, on any thread.
#pragma once

#include <cstdint>

#include "support/problem.h"

namespace clary::support {

// Round to nearest even; overflow gives infinity; a NaN stays one.
uint16_t f16_from_float(float value);
float float_from_f16(uint16_t bits);
uint16_t bf16_from_float(float value);
float float_from_bf16(uint16_t bits);

// A counter-based generator: the value is a function of (seed, stream, index) alone.
class Random {
 public:
  Random(uint64_t seed, uint64_t stream);
  uint64_t bits(uint64_t index) const;
  double uniform(uint64_t index) const;                  // [0, 1)
  void normal_pair(uint64_t index, double* pair) const;  // two of N(0, 1)
  double normal(uint64_t index) const;

 private:
  uint64_t key_;
};

// Each draws one tensor of `problem` into memory that make_tensors() laid out. Elements depend on their logical index
// (batch or sequence, head, token, channel), not on layout or strides.
void fill_q(const Problem& problem, Tensor& q);
void fill_k(const Problem& problem, Tensor& k);
void fill_v(const Problem& problem, Tensor& v);
void fill_mask(const Problem& problem, Tensor& mask);
void fill_alibi_slopes(Tensor& slopes);  // 2^(-8 (h + 1) / Hq), as in the paper
void fill_sinks(const Problem& problem, Tensor& sinks);

}  // namespace clary::support
