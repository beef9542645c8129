// Normalising, and writing rows of the output and of the LSE in any type and with any strides.
#pragma once

#include "cuda/attention/softmax.h"

namespace clary::cuda {

// Straight from the accumulators: a quad's four pairs are 16 bytes of a row in 16-bit outputs, and L2 joins the
// halves of its 32-byte sectors. Outputs are 1 / keys of what is read, so staging them through shared memory would
// gain little.
template <class M, Element kP, int kDim>
struct Epilogue {
  // o: accumulators of 16 rows; `row` is the one of register 0. shift: octaves taken by smoothing, per row.
  static CLARY_DEVICE void write(const AttentionParams& p, const Work& w, const Span& span, int32_t row, int lane,
                                 const RowState& state, const float (&shift)[2], const float (&o)[kDim / 8][4]) {
    const int64_t channel = (int64_t{w.sequence} * p.shape.heads_kv + w.head / p.shape.group) * kDim + 2 * (lane % 4);
    const bool has_sink = p.sinks != nullptr;
    const float sink = has_sink ? p.sinks[w.head * p.sink_head] * kLog2E : 0;
    // Shuffles come before the row is found to be beyond the end: all lanes take part.
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float l = state.l[r];
      l += M::shuffle_xor(l, 1);
      l += M::shuffle_xor(l, 2);
      const int32_t at = row + 8 * r;
      if (at >= span.len_q) continue;
      // Sinks are true scores; those here lack the shift, unless softcap has brought it back.
      const float taken = p.softcap > 0 ? 0 : shift[r];
      const RowResult result = finish_row<M>(state.m[r], l, p_offset(kP), has_sink, sink - taken, taken);
      if (p.out.lse != nullptr && lane % 4 == 0)
        p.out.lse[span.batch * p.out.lse_batch + w.head * p.out.lse_head + (span.q_begin + at) * p.out.lse_row] =
            result.lse;
      const int64_t base = span.batch * p.out.batch + w.head * p.out.head + (span.q_begin + at) * p.out.row;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const int d = 8 * n + 2 * (lane % 4);
        if (d >= p.shape.dim_v) break;
        const float* const scale = p.v_scale + channel + 8 * n;
        const float* const centre = p.v_centre + channel + 8 * n;
        store(p.out, base + d, d + 1 < p.shape.dim_v,
              o[n][2 * r] * (result.factor * scale[0]) + result.weight * centre[0],
              o[n][2 * r + 1] * (result.factor * scale[1]) + result.weight * centre[1]);
      }
    }
  }

 private:
  static CLARY_DEVICE void store(const OutputParams& out, int64_t at, bool both, float a, float b) {
    if (out.type == Type::f32) {
      float* const to = static_cast<float*>(out.data) + at;
      to[0] = a;
      if (both) to[1] = b;
      return;
    }
    const uint32_t bits = out.type == Type::f16 ? M::f16x2(a, b) : M::bf16x2(a, b);
    uint16_t* const to = static_cast<uint16_t*>(out.data) + at;
    if (both && out.pairs) {
      *reinterpret_cast<uint32_t*>(to) = bits;
      return;
    }
    to[0] = static_cast<uint16_t>(bits);
    if (both) to[1] = static_cast<uint16_t>(bits >> 16);
  }
};

}  // namespace clary::cuda
