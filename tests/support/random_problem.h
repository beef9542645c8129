// Random problems of all features at once, small enough to run thousands of them on every instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <string>

#include "support/problem.h"

namespace clary::test {

inline uint64_t environment_or(const char* name, uint64_t fallback) {
  const char* const text = std::getenv(name);
  return text && *text ? std::strtoull(text, nullptr, 10) : fallback;
}

class RandomProblems {
 public:
  explicit RandomProblems(uint64_t seed) : bits_(seed) {}

  support::Problem next() {
    support::Problem p;
    draw_shape(p);
    draw_visibility(p);
    draw_scores(p);
    p.precision = pick<clary_precision>(
        {CLARY_EXACT, CLARY_BF16, CLARY_INT8_F16, CLARY_INT8, CLARY_INT4, CLARY_AUTO, CLARY_BF16X3});
    p.dtype = pick<support::DType>({support::DType::f32, support::DType::f16, support::DType::bf16});
    p.out_f32 = p.dtype != support::DType::f32 && one_in(3);
    p.layout = pick<clary_layout>({CLARY_BHSD, CLARY_BSHD});
    p.seed = below(1 << 30);
    return p;
  }

  // Uniform in 0 .. n-1. The modulo keeps sequences equal on every standard library; its bias does not matter here.
  uint64_t below(uint64_t n) { return bits_() % n; }
  bool one_in(uint64_t n) { return below(n) == 0; }

 private:
  template <typename T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[below(values.size())];
  }

  int64_t length(std::initializer_list<int64_t> edges, int64_t limit) {
    return one_in(2) ? pick<int64_t>(edges) : static_cast<int64_t>(1 + below(static_cast<uint64_t>(limit)));
  }

  void draw_shape(support::Problem& p) {
    p.batch = one_in(60) ? 0 : pick<int64_t>({1, 1, 1, 2, 3});
    p.heads_kv = pick<int64_t>({1, 1, 2, 3});
    p.heads_q = p.heads_kv * pick<int64_t>({1, 1, 2, 4, 7});
    p.len_q = one_in(60) ? 0 : length({1, 1, 2, 15, 16, 17, 31, 33, 48, 65}, 100);
    p.len_k = one_in(60) ? 0 : length({1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 513, 600, 1100}, 400);
    p.dim_qk = length({1, 2, 3, 7, 8, 16, 31, 32, 33, 64, 80, 96, 128, 160, 256}, 140);
    p.dim_v = one_in(2) ? p.dim_qk : length({1, 3, 8, 16, 32, 33, 64, 100, 128, 192}, 140);
    // Half a million multiply-adds per head and a few million per problem: milliseconds even for the scalar set.
    const auto work = [&] { return p.len_q * p.len_k * (p.dim_qk + p.dim_v); };
    while (work() > 500'000) {
      int64_t& larger_dim = p.dim_qk > p.dim_v ? p.dim_qk : p.dim_v;
      (p.len_q > 17 ? p.len_q : p.len_k > 300 ? p.len_k : larger_dim) /= 2;
    }
    while (work() * p.heads_q * p.batch > 1'500'000 && p.batch > 1) --p.batch;
    while (work() * p.heads_q * p.batch > 1'500'000 && p.heads_q > p.heads_kv) p.heads_q -= p.heads_kv;
    if (p.batch > 0 && one_in(6)) {
      for (int64_t b = 0; b < p.batch; ++b) {
        p.lens_q.push_back(static_cast<int32_t>(below(static_cast<uint64_t>(p.len_q) + 1)));
        p.lens_k.push_back(static_cast<int32_t>(below(static_cast<uint64_t>(p.len_k) + 1)));
      }
      p.len_q = *std::max_element(p.lens_q.begin(), p.lens_q.end());
      p.len_k = *std::max_element(p.lens_k.begin(), p.lens_k.end());
    }
  }

  void draw_visibility(support::Problem& p) {
    if (one_in(2))
      p.causal = pick<clary_causal>({CLARY_CAUSAL_TOP_LEFT, CLARY_CAUSAL_BOTTOM_RIGHT, CLARY_CAUSAL_OFFSET});
    if (p.causal == CLARY_CAUSAL_OFFSET)
      p.causal_offset = static_cast<int64_t>(below(static_cast<uint64_t>(p.len_q + p.len_k) + 20)) - p.len_q - 10;
    if (one_in(4)) p.window_left = static_cast<int64_t>(below(static_cast<uint64_t>(p.len_k) + 5));
    if (one_in(4)) p.window_right = static_cast<int64_t>(below(static_cast<uint64_t>(p.len_k) + 5));
    if (!one_in(3)) return;
    using support::MaskKind;
    p.mask = pick<MaskKind>({MaskKind::boolean, MaskKind::additive, MaskKind::key_padding, MaskKind::block});
    p.mask_keep = pick<double>({0, 0.02, 0.3, 0.5, 0.9, 1});
    if (p.mask == MaskKind::boolean || p.mask == MaskKind::additive) p.mask_broadcast = static_cast<int>(below(16));
    p.mask_input_type = p.mask == MaskKind::additive && one_in(2);
  }

  void draw_scores(support::Problem& p) {
    if (one_in(5)) p.softcap = pick<double>({0.5, 5, 50});
    p.alibi = one_in(5);
    p.sinks = one_in(5);
    p.has_scale = one_in(6);
    if (p.has_scale) p.softmax_scale = pick<double>({0, 0.05, -0.1, 0.3});
    using support::Data;
    p.data = pick<Data>({Data::normal, Data::normal, Data::normal, Data::outliers, Data::peaked, Data::constant});
  }

  std::mt19937_64 bits_;  // its sequence is fixed by the standard
};

}  // namespace clary::test
