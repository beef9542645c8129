// Reading rows of any element type as f32, in whole vectors.
#pragma once

#include <cstring>

#include "kernel/args.h"

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

  // `dim` elements as f32, padded with zeros to whole vectors. Reads nothing beyond the row.
  static void read(const void* row, DType dtype, int dim, float* to) {
    int c = 0;
    for (; c + 16 <= dim; c += 16) V::store(to + c, load(row, dtype, c));
    if (c == dim) return;
    alignas(64) char tail[64] = {};
    const int bytes = size_bytes(dtype);
    std::memcpy(tail, static_cast<const char*>(row) + c * bytes, static_cast<size_t>((dim - c) * bytes));
    V::store(to + c, load(tail, dtype, 0));
  }

  // As read(), with NaN and infinity replaced by zero; returns whether there were any.
  static bool read_finite(const void* row, DType dtype, int dim, float* to) {
    read(row, dtype, dim, to);
    I32 largest = V::set_i32(0);
    const I32 magnitude = V::set_i32(0x7fffffff);
    for (int c = 0; c < dim; c += 16) largest = V::max_i32(largest, V::and_i32(V::as_i32(V::load(to + c)), magnitude));
    if (V::reduce_max_i32(largest) < kInfinityBits) return false;
    for (int c = 0; c < dim; c += 16) {
      const F32 x = V::load(to + c);
      V::store(to + c, V::select_less(V::abs(x), V::as_f32(V::set_i32(kInfinityBits)), x, V::zero()));
    }
    return true;
  }

  // Writes `dim` floats as `dtype`.
  static void write(const float* from, DType dtype, int dim, void* row) {
    int c = 0;
    for (; c + 16 <= dim; c += 16) store(V::load(from + c), row, dtype, c);
    if (c == dim) return;
    alignas(64) char tail[64];
    store(V::load(from + c), tail, dtype, 0);
    const int bytes = size_bytes(dtype);
    std::memcpy(static_cast<char*>(row) + c * bytes, tail, static_cast<size_t>((dim - c) * bytes));
  }

 private:
  static constexpr int32_t kInfinityBits = 0x7f800000;

  [[gnu::always_inline]] static void store(F32 x, void* p, DType dtype, int64_t index) {
    if (dtype == DType::f32) return V::store(static_cast<float*>(p) + index, x);
    auto* half = static_cast<uint16_t*>(p) + index;
    dtype == DType::f16 ? V::store_f16(half, x) : V::store_bf16(half, x);
  }
};

// Mean over a sample of at most kMeanTokens rows; non-finite values count as zeros, hidden keys do not count. The
// stride between sampled rows is odd, so that it does not fall in step with images or frames whose rows are powers of
// two.
template <class V>
void channel_mean(const MeanArgs& args) {
  using F32 = typename V::F32;
  const int width = static_cast<int>(round_up(args.dim, 16));
  alignas(64) float row[1024], sum[1024] = {};
  const int64_t step = (args.count / kMeanTokens) | 1;
  const int bytes = size_bytes(args.dtype);
  int64_t taken = 0;
  for (int64_t i = 0; i < args.count; i += step) {
    if (args.problem != nullptr && args.problem->hides_key(args.sequence_index, args.head_kv, i)) continue;
    ++taken;
    Rows<V>::read_finite(static_cast<const char*>(args.rows) + i * args.row_stride * bytes, args.dtype, args.dim, row);
    for (int c = 0; c < width; c += 16) V::store(sum + c, V::add(V::load(sum + c), V::load(row + c)));
  }
  const F32 share = V::set(taken > 0 ? 1.0f / static_cast<float>(taken) : 0.0f);
  for (int c = 0; c < width; c += 16) V::store(args.mean + c, V::mul(V::load(sum + c), share));
}

}  // namespace clary
