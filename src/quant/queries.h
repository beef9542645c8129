// Query rows of a work item: read, smooth, quantise, and note what the kernels need to know about each.
#pragma once

#include <cmath>

#include "kernel/item.h"
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
    std::memset(s_.q, 0, static_cast<size_t>(s_.rows * s_.q_stride) * 4);
    for (int r = 0; r < a_.count; ++r) load_row(r);
    for (int r = a_.count; r < s_.rows; ++r) pad_row(r);
    if constexpr (kInPairs<V, S::kQk>)
      for (int r = 0; r < s_.rows; r += 2) pair_rows(s_.q + r * s_.q_stride);
  }

 private:
  using F32 = typename V::F32;
  using I32 = typename V::I32;

  void load_row(int r) {
    const Problem& p = *a_.problem;
    const Row& row = a_.rows[r];
    const int64_t member = row.head - a_.head_kv * p.group;
    const int64_t index =
        a_.sequence.batch * p.q.batch + row.head * p.q.head + (a_.sequence.q_begin + row.query) * p.q.row;
    alignas(64) float x[1024];
    const void* from = static_cast<const char*>(a_.tensors->q) + index * size_bytes(p.dtype);
    s_.exact[r] = Rows<V>::read_finite(from, p.dtype, static_cast<int>(p.dim_qk), x) ? 1 : 0;
    s_.key_bias[r] = a_.head->key_bias + member * a_.head->key_bias_stride;
    s_.range[r] = p.visible_keys(a_.sequence, row.query);
    s_.slope[r] = static_cast<float>(p.alibi_slope(a_.sequence_index, row.head)) * kLog2e * S::kUnitsPerOctave;
    s_.constant[r] = S::kSmoothKeys ? unit_ * dot(x, a_.head->key_mean) : 0;
    write(r, x, a_.head->query_mean == nullptr ? nullptr : a_.head->query_mean + member * a_.head->query_mean_stride);
  }

  // A row of zeros that sees every key.
  void pad_row(int r) {
    s_.exact[r] = 0;
    s_.key_bias[r] = s_.key_bias[0];
    s_.range[r] = {0, a_.sequence.len_k};
    s_.q_scale[r] = s_.q_sum[r] = s_.constant[r] = s_.reach[r] = s_.slope[r] = 0;
    s_.q_init[r] = 0;
  }

  float dot(const float* x, const float* y) const {
    F32 sum = V::zero();
    for (int c = 0; c < width_; c += 16) sum = V::mul_add(V::load(x + c), V::load(y + c), sum);
    return V::reduce_add(sum);
  }

  void write(int r, float* x, const float* mean) {
    float length = 0;
    if (mean != nullptr) {
      for (int c = 0; c < width_; c += 16) V::store(x + c, V::sub(V::load(x + c), V::load(mean + c)));
      length = std::sqrt(dot(mean, mean));
    }
    s_.reach[r] = std::fabs(unit_) * (std::sqrt(dot(x, x)) + length);
    uint32_t* to = s_.q + r * s_.q_stride;
    s_.q_scale[r] = unit_;
    s_.q_init[r] = 0;
    s_.q_sum[r] = 0;
    if constexpr (S::kQk == Element::f32) {
      std::memcpy(to, x, static_cast<size_t>(width_) * 4);
    } else if constexpr (S::kQk == Element::bf16) {
      for (int c = 0; c < width_; c += 16) V::store_bf16(reinterpret_cast<uint16_t*>(to) + c, V::load(x + c));
    } else {
      write_codes(r, x, to);
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
  void write_codes(int r, const float* x, uint32_t* to) {
    F32 largest = V::zero();
    for (int c = 0; c < width_; c += 16) largest = V::max(largest, V::abs(V::load(x + c)));
    const float top = V::reduce_max(largest);
    const F32 inverse = V::set(top > 0 ? 127 / top : 0);
    I32 sum = V::set_i32(0);
    for (int c = 0; c < width_; c += 16) {
      const I32 code = V::to_i32(V::mul(V::load(x + c), inverse));
      sum = V::add_i32(sum, code);
      if constexpr (S::kQk == Element::i8w) {
        V::store_words(reinterpret_cast<int16_t*>(to) + c, code);
      } else {
        V::store_i8(reinterpret_cast<int8_t*>(to) + c, code);
      }
    }
    const int32_t total = V::reduce_add_i32(sum);
    s_.q_scale[r] = unit_ * top * (1.0f / 127);
    s_.q_init[r] = S::kQk == Element::i8 && !kSignedKeys<V, S> ? -128 * total : 0;
    s_.q_sum[r] = static_cast<float>(total);
  }

  const AttendArgs& a_;
  ItemState& s_;
  int width_ = 0;
  float unit_ = 0;
};

}  // namespace clary
