// Query rows of a work item: read, smooth, quantise, and note what the kernels need to know about each.
#pragma once

#include <cmath>

#include "kernel/item.h"
#include "kernel/tiles/layout.h"
#include "quant/rows.h"

namespace clary {

template <class V, class S>
class Queries {
 public:
  Queries(const AttendArgs& args, ItemState& state) : a_(args), s_(state) {
    width_ = static_cast<int>(round_up(a_.problem->dim_qk, 16));
    unit_ = a_.problem->softmax_scale * kLog2e * S::kUnitsPerOctave;
  }

  void load() {
    s_.rows = static_cast<int>(round_up(a_.count, kUsesTiles<V, S> ? 2 * kUnitRows : kUnitRows));
    // Steps that whole vectors of channels do not reach are zeros.
    if (width_ != s_.q_stride * elements_per_step(S::kQk))
      std::memset(s_.q, 0, static_cast<size_t>(s_.rows * s_.q_stride) * 4);
    for (int first = 0; first < s_.rows; first += kUnitRows) load_unit(first);
    if constexpr (kInPairs<V, S::kQk>)
      for (int r = 0; r < s_.rows; r += 2) pair_rows(s_.q + r * s_.q_stride);
  }

 private:
  using F32 = typename V::F32;
  using I32 = typename V::I32;

  // What is asked of each of 16 rows, to be reduced for all of them at once.
  struct Sums {
    F32 squares[kUnitRows], tops[kUnitRows], constants[kUnitRows];
  };

  void load_unit(int first) {
    alignas(64) float buffer[S::kQk == Element::f32 ? 16 : kUnitRows * 1024];
    float* const x = S::kQk == Element::f32 ? reinterpret_cast<float*>(s_.q + first * s_.q_stride) : buffer;
    Sums sums;
    with_dtype(a_.problem->dtype, [&](auto dtype) {
      this->template read_rows<dtype>(first, x, false, sums);
      // A sum over anything non-finite is not finite either.
      if (!Rows<V>::is_finite(V::reduce_add16(sums.squares))) this->template read_rows<dtype>(first, x, true, sums);
    });
    V::store(s_.q_scale + first, V::set(unit_));
    V::store(s_.q_sum + first, V::zero());
    V::store_i32(s_.q_init + first, V::set_i32(0));
    const F32 constant = S::kSmoothKeys ? V::mul(V::set(unit_), V::reduce_add16(sums.constants)) : V::zero();
    V::store(s_.constant + first, constant);
    V::store(s_.reach + first, V::reduce_add16(sums.squares));
    if constexpr (S::kQk != Element::f32) write_rows(first, x, sums);
    for (int r = first; r < first + kUnitRows; ++r) r < a_.count ? describe_row(r) : pad_row(r);
  }

  // Rows as floats, minus the mean of the queries, if there is one; zeros where there is no row.
  template <DType T>
  void read_rows(int first, float* x, bool look_for_nonfinite, Sums& sums) {
    const Problem& p = *a_.problem;
    const int64_t stride = S::kQk == Element::f32 ? s_.q_stride : width_;  // f32: in their place at once
    for (int i = 0; i < kUnitRows; ++i, x += stride) {
      if (first + i >= a_.count) {
        std::memset(x, 0, static_cast<size_t>(width_) * 4);
        sums.squares[i] = sums.tops[i] = sums.constants[i] = V::zero();
        continue;
      }
      const Row& row = a_.rows[first + i];
      const int64_t index =
          a_.sequence.batch * p.q.batch + row.head * p.q.head + (a_.sequence.q_begin + row.query) * p.q.row;
      const void* from = static_cast<const char*>(a_.tensors->q) + index * size_bytes(T);
      if (look_for_nonfinite) {
        s_.exact[first + i] = Rows<V>::read_finite(from, T, static_cast<int>(p.dim_qk), x) ? 1 : 0;
        read_row<DType::f32>(x, mean_of(row), x, i, sums);
      } else {
        s_.exact[first + i] = 0;
        read_row<T>(from, mean_of(row), x, i, sums);
      }
    }
  }

  template <DType T>
  [[gnu::always_inline]] void read_row(const void* from, const float* mean, float* to, int i, Sums& sums) const {
    mean == nullptr ? read_row<T, false>(from, mean, to, i, sums) : read_row<T, true>(from, mean, to, i, sums);
  }

  template <DType T, bool kCentre>
  [[gnu::always_inline]] void read_row(const void* from, const float* mean, float* to, int i, Sums& sums) const {
    const int dim = static_cast<int>(a_.problem->dim_qk);
    const float* const key_mean = a_.head->key_mean;
    F32 squares = V::zero(), top = V::zero(), constant = V::zero();
    Rows<V>::for_vectors(
        from, T, dim, [&](F32 x, int c) __attribute__((always_inline)) {
          if constexpr (S::kSmoothKeys) constant = V::mul_add(x, V::load(key_mean + c), constant);
          if constexpr (kCentre) x = V::sub(x, V::load(mean + c));
          V::store(to + c, x);
          squares = V::mul_add(x, x, squares);
          if constexpr (S::kIntegerQk) top = V::max(top, V::abs(x));
        });
    sums.squares[i] = squares, sums.tops[i] = top, sums.constants[i] = constant;
  }

  int64_t member(const Row& row) const { return row.head - a_.head_kv * a_.problem->group; }
  const float* mean_of(const Row& row) const {
    return a_.head->query_mean == nullptr ? nullptr : a_.head->query_mean + member(row) * a_.head->query_mean_stride;
  }

  // What comes from the row's place; its reach is still the square of its norm.
  void describe_row(int r) {
    const Row& row = a_.rows[r];
    const float* mean = mean_of(row);
    if (mean != mean_) mean_ = mean, mean_length_ = std::sqrt(dot(mean, mean));
    s_.reach[r] = std::fabs(unit_) * (std::sqrt(s_.reach[r]) + mean_length_);
    s_.key_bias[r] = a_.head->key_bias + member(row) * a_.head->key_bias_stride;
    s_.range[r] = {0, a_.sequence.len_k};
    if (a_.problem->limits_keys()) s_.range[r] = a_.problem->visible_keys(a_.sequence, row.query);
    s_.slope[r] =
        static_cast<float>(a_.problem->alibi_slope(a_.sequence_index, row.head)) * kLog2e * S::kUnitsPerOctave;
  }

  // A row of zeros that sees every key.
  void pad_row(int r) {
    s_.exact[r] = 0;
    s_.key_bias[r] = s_.key_bias[0];
    s_.range[r] = {0, a_.sequence.len_k};
    s_.q_scale[r] = s_.reach[r] = s_.slope[r] = 0;
  }

  float dot(const float* x, const float* y) const {
    F32 sum = V::zero();
    for (int c = 0; c < width_; c += 16) sum = V::mul_add(V::load(x + c), V::load(y + c), sum);
    return V::reduce_add(sum);
  }

  void write_rows(int first, const float* x, const Sums& sums) {
    alignas(64) float inverse[kUnitRows];
    if constexpr (S::kIntegerQk) {
      const F32 top = V::reduce_max16(sums.tops);
      V::store(s_.q_scale + first, V::mul(V::mul(V::set(unit_), top), V::set(1.0f / 127)));
      V::store(inverse, V::select_less(V::zero(), top, V::div(V::set(127), top), V::zero()));
    }
    for (int i = 0; i < kUnitRows; ++i, x += width_) {
      uint32_t* to = s_.q + (first + i) * s_.q_stride;
      if constexpr (S::kIntegerQk) {
        write_codes(first + i, x, V::set(inverse[i]), to);
      } else if constexpr (S::kSplit) {
        auto* high = reinterpret_cast<uint16_t*>(to);
        for (int c = 0; c < width_; c += 16) store_split<V>(high + c, high + s_.q_stride + c, V::load(x + c));
      } else {
        for (int c = 0; c < width_; c += 16) V::store_bf16(reinterpret_cast<uint16_t*>(to) + c, V::load(x + c));
      }
    }
  }

  // Two rows become one of both in turns, two steps of each.
  void pair_rows(uint32_t* rows) const {
    uint32_t both[1024];
    for (int64_t s = 0; s < s_.q_stride; ++s)
      for (int row = 0; row < 2; ++row) both[s / 2 * 4 + row * 2 + s % 2] = rows[row * s_.q_stride + s];
    std::memcpy(rows, both, static_cast<size_t>(2 * s_.q_stride) * 4);
  }

  // INT8, symmetric, one scale per row (SageAttention2's finest granularity).
  void write_codes(int r, const float* x, F32 inverse, uint32_t* to) {
    constexpr bool kSums = S::kQk == Element::i4 || (S::kQk == Element::i8 && !kSignedKeys<V, S>);
    I32 sum = V::set_i32(0);
    for (int c = 0, width = width_; c < width; c += 16) {
      const I32 code = V::to_i32(V::mul(V::load(x + c), inverse));
      if constexpr (kSums) sum = V::add_i32(sum, code);
      if constexpr (S::kQk == Element::i8w) {
        V::store_words(reinterpret_cast<int16_t*>(to) + c, code);
      } else {
        V::store_i8(reinterpret_cast<int8_t*>(to) + c, code);
      }
    }
    if constexpr (!kSums) return;
    const int32_t total = V::reduce_add_i32(sum);
    if constexpr (S::kQk == Element::i8) s_.q_init[r] = -128 * total;
    s_.q_sum[r] = static_cast<float>(total);
  }

  const AttendArgs& a_;
  ItemState& s_;
  int width_ = 0;
  float unit_ = 0;
  const float* mean_ = nullptr;  // of the last row described, and its length
  float mean_length_ = 0;
};

}  // namespace clary
