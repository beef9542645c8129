// Reading rows of any element type as f32, in whole vectors.
#pragma once

#include <cstring>

#include "kernel/scheme.h"

namespace clary {

template <class V>
struct Rows {
  using F32 = typename V::F32;
  using I32 = typename V::I32;

  [[gnu::always_inline]] static F32 load(const void* p, DType dtype, int64_t index) {
    if (dtype == DType::f32) return V::load(static_cast<const float*>(p) + index);
    const auto* half = static_cast<const uint16_t*>(p) + index;
    return dtype == DType::f16 ? V::load_f16(half) : V::load_bf16(half);
  }

  // Channels c .. dim - 1 of a row, fewer than 16, and zeros. Reads nothing beyond the row, and calls nothing, which
  // would cost the callers' registers.
  [[gnu::always_inline]] static F32 load_end(const void* row, DType dtype, int c, int dim) {
    alignas(64) char tail[64] = {};
    if (dtype == DType::f32) {
      copy_few<4>(static_cast<const char*>(row) + c * 4, dim - c, tail);
    } else {
      copy_few<2>(static_cast<const char*>(row) + c * 2, dim - c, tail);
    }
    return load(tail, dtype, 0);
  }

  // body(channels, c) for each vector of a row. The last one apart: where a vector takes two registers, compilers keep
  // what comes from two branches in memory.
  template <class Body>
  [[gnu::always_inline]] static void for_vectors(const void* row, DType dtype, int dim, Body&& body) {
    int c = 0;
    for (; c + 16 <= dim; c += 16) body(load(row, dtype, c), c);
    if (c < dim) body(load_end(row, dtype, c, dim), c);
  }

  // `dim` elements as f32, padded with zeros to whole vectors.
  static void read(const void* row, DType dtype, int dim, float* to) {
    for_vectors(
        row, dtype, dim, [&](F32 x, int c) __attribute__((always_inline)) { V::store(to + c, x); });
  }

  // As read(), with NaN and infinity replaced by zero; returns whether there were any.
  static bool read_finite(const void* row, DType dtype, int dim, float* to) {
    read(row, dtype, dim, to);
    I32 largest = V::set_i32(0);
    const I32 magnitude = V::set_i32(0x7fffffff);
    for (int c = 0; c < dim; c += 16) largest = V::max_i32(largest, V::and_i32(V::as_i32(V::load(to + c)), magnitude));
    if (V::reduce_max_i32(largest) < kInfinityBits) return false;
    for (int c = 0; c < dim; c += 16) {
      V::store(to + c, finite(V::load(to + c)));
    }
    return true;
  }

  // x where it is finite, otherwise zero.
  [[gnu::always_inline]] static F32 finite(F32 x) {
    return V::select_less(V::abs(x), V::as_f32(V::set_i32(kInfinityBits)), x, V::zero());
  }
  [[gnu::always_inline]] static bool is_finite(F32 x) { return V::reduce_add(V::sub(x, x)) == 0; }

  // Channels c .. c + 15 of a row of `dim`, as `dtype`; writes nothing beyond the row.
  [[gnu::always_inline]] static void store_cut(F32 x, void* row, DType dtype, int c, int dim) {
    if (c + 16 <= dim) return store(x, row, dtype, c);
    alignas(64) char tail[64];
    store(x, tail, dtype, 0);
    const int bytes = size_bytes(dtype);
    std::memcpy(static_cast<char*>(row) + c * bytes, tail, static_cast<size_t>((dim - c) * bytes));
  }

 private:
  static constexpr int32_t kInfinityBits = 0x7f800000;

  // Fewer than 16 elements.
  template <int kBytes>
  [[gnu::always_inline]] static void copy_few(const char* from, int count, char* to) {
    unroll<4>([&](auto i) __attribute__((always_inline)) {
      constexpr int kPart = 8 >> i;
      if ((count & kPart) == 0) return;
      std::memcpy(to, from, kPart * kBytes);
      from += kPart * kBytes, to += kPart * kBytes;
    });
  }

  [[gnu::always_inline]] static void store(F32 x, void* p, DType dtype, int64_t index) {
    if (dtype == DType::f32) return V::store(static_cast<float*>(p) + index, x);
    auto* half = static_cast<uint16_t*>(p) + index;
    dtype == DType::f16 ? V::store_f16(half, x) : V::store_bf16(half, x);
  }
};

// body(std::integral_constant<DType, T>())
template <class Body>
[[gnu::always_inline]] inline void with_dtype(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f32: return body(std::integral_constant<DType, DType::f32>());
    case DType::f16: return body(std::integral_constant<DType, DType::f16>());
    default: return body(std::integral_constant<DType, DType::bf16>());
  }
}

// Mean over a sample of at most kMeanTokens rows; non-finite values count as zeros, hidden keys do not count. The
// stride between sampled rows is odd, so that it does not fall in step with images or frames whose rows are powers of
// two.
template <class V, DType T>
class ChannelMean {
 public:
  explicit ChannelMean(const MeanArgs& args) : a_(args) {}

  void run() {
    step_ = (a_.count / kMeanTokens) | 1;
    samples_ = static_cast<int>((a_.count + step_ - 1) / step_);
    hides_ = a_.problem != nullptr && a_.problem->hides_keys();
    if (hides_) a_.problem->find_hidden_keys(a_.sequence_index, a_.head_kv, 0, step_, samples_, hidden_);
    int c = 0;
    for (; c + 16 * kVectors <= a_.dim; c += 16 * kVectors) run<kVectors>(c);
    for (; c + 16 <= a_.dim; c += 16) run<1>(c);
    if (c < a_.dim) run<0>(c);
  }

 private:
  using F32 = typename V::F32;
  // Sums that stay in registers, with room for as many loads.
  static constexpr int kVectors = 4;

  // N vectors of channels; 0: the last one, which is not whole. A sum over anything non-finite is not finite either.
  template <int N>
  void run(int channel) {
    if (!add_rows<N>(
            channel, [](F32 x) __attribute__((always_inline)) { return x; }))
      add_rows<N>(channel, Rows<V>::finite);
  }

  // Returns whether the mean is finite. Sums are touched by unrolled code alone, or they would not stay in registers.
  template <int N, class Filter>
  [[gnu::always_inline]] bool add_rows(int channel, Filter&& filter) const {
    constexpr int kSums = N > 0 ? N : 1;
    F32 sum[kSums];
    unroll<kSums>([&](auto n) __attribute__((always_inline)) { sum[n] = V::zero(); });
    int taken = 0;
    for (int i = 0; i < samples_; ++i) {
      if (hides_ && hidden_[i]) continue;
      ++taken;
      const void* row = static_cast<const char*>(a_.rows) + i * step_ * a_.row_stride * size_bytes(T);
      unroll<kSums>([&](auto n) __attribute__((always_inline)) {
        if constexpr (N > 0)
          sum[n] = V::add(sum[n], filter(Rows<V>::load(row, T, channel + n * 16)));
        else
          sum[n] = V::add(sum[n], filter(Rows<V>::load_end(row, T, channel, a_.dim)));
      });
    }
    const F32 share = V::set(taken > 0 ? 1.0f / static_cast<float>(taken) : 0.0f);
    bool finite = true;
    unroll<kSums>([&](auto n) __attribute__((always_inline)) {
      finite = finite && Rows<V>::is_finite(sum[n]);
      V::store(a_.mean + channel + n * 16, V::mul(sum[n], share));
    });
    return finite;
  }

  const MeanArgs& a_;
  int64_t step_ = 1;
  int samples_ = 0;
  bool hides_ = false, hidden_[2 * kMeanTokens];  // a step of 1 takes up to twice as many
};

template <class V>
void channel_mean(const MeanArgs& args) {
  with_dtype(args.dtype, [&](auto dtype) { ChannelMean<V, dtype>(args).run(); });
}

}  // namespace clary
