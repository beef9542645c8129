// Eight neighbouring channels of a token: what one thread of the quantiser loads and stores at a time.
#pragma once

#include "cuda/quantise/params.h"

namespace clary::cuda {

// 8, 16 or 32 neighbouring lanes of a warp share a row. At dims 32, 96 and 192 some lie beyond its end: they see zeros
// and store what rounds the row of an image up to whole steps.
struct RowLanes {
  int lanes, lane, row, rows;  // rows: per pass of the block
  CLARY_DEVICE RowLanes(int thread, int dim)
      : lanes(dim <= 64    ? 8
              : dim <= 128 ? 16
                           : 32),
        lane(thread % lanes),
        row(thread / lanes),
        rows(kQuantiseThreads / lanes) {}
};

CLARY_DEVICE const char* token(const InputParams& in, Type type, const Span& span, int64_t begin, int head,
                               int64_t row) {
  const int64_t at = span.batch * in.batch + head * in.head + (begin + row) * in.row;
  return static_cast<const char*>(in.data) + at * (type == Type::f32 ? 4 : 2);
}

// Is it a number? By its exponent, so that no compiler option can answer otherwise.
template <class M>
CLARY_DEVICE bool is_finite(float x) {
  return (M::bits(x) & 0x7F800000u) != 0x7F800000u;
}

// By the sign bit: the result is never -0, whose bits are larger than those of any positive number.
template <class M>
CLARY_DEVICE float magnitude(float x) {
  return M::from_bits(M::bits(x) & 0x7FFFFFFFu);
}

template <class M>
CLARY_DEVICE float widen(uint32_t half, Type type) {
  const uint16_t bits = static_cast<uint16_t>(half);
  return type == Type::f16 ? M::from_f16(bits) : M::from_bf16(bits);
}

// Channels d .. d + 7 of a row of `dim`; 0 beyond its end.
template <class M>
CLARY_DEVICE void load_8(const char* row, Type type, bool vectors, int d, int dim, float (&x)[8]) {
  if (vectors && d + 8 <= dim) {
    if (type == Type::f32) {
      const Words a = reinterpret_cast<const Words*>(row)[d / 4], b = reinterpret_cast<const Words*>(row)[d / 4 + 1];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = M::from_bits(a.w[i]), x[i + 4] = M::from_bits(b.w[i]);
      return;
    }
    const Words a = reinterpret_cast<const Words*>(row)[d / 8];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[2 * i] = widen<M>(a.w[i], type), x[2 * i + 1] = widen<M>(a.w[i] >> 16, type);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    x[i] = 0;
    if (d + i < dim)
      x[i] = type == Type::f32 ? reinterpret_cast<const float*>(row)[d + i]
                               : widen<M>(reinterpret_cast<const uint16_t*>(row)[d + i], type);
  }
}

template <class M>
CLARY_DEVICE uint32_t pair_of(float a, float b, Element e) {
  return e == Element::f16 ? M::f16x2(a, b) : M::bf16x2(a, b);
}

// Rounds and stores channels d .. d + 7 of row `row` of an image. Integers are already within their levels.
template <class M>
CLARY_DEVICE void store_8(uint8_t* image, int rows, int row_bytes, int row, int d, Element e, const float (&x)[8]) {
  if (d * bits_of(e) / 8 >= row_bytes) return;
  uint8_t* const to = image + image_offset(rows, row_bytes, row, d * bits_of(e) / 8);
  if (!is_integer(e)) {
    Words words;
#pragma unroll
    for (int i = 0; i < 4; ++i) words.w[i] = pair_of<M>(x[2 * i], x[2 * i + 1], e);
    *reinterpret_cast<Words*>(to) = words;
    return;
  }
  const int bits = bits_of(e);
  uint64_t packed = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    packed |= (static_cast<uint64_t>(M::to_int(x[i])) & ((uint64_t{1} << bits) - 1)) << (bits * i);
  if (e == Element::s8)
    *reinterpret_cast<uint64_t*>(to) = packed;
  else
    *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(packed);
}

// The sum of a chunked statistic over all chunks, in order.
CLARY_DEVICE float add_chunks(const float* partial, int64_t head, int dim, int channel) {
  float sum = 0;
  for (int chunk = 0; chunk < kChunks; ++chunk) sum += partial[(head * kChunks + chunk) * dim + channel];
  return sum;
}

}  // namespace clary::cuda
