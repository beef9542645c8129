// Few query rows: K and V are read once, as the caller holds them, in f32 arithmetic; nothing is packed.
//
// With up to 16 rows per key-value head (decoding) a call is bound by the bandwidth of memory, and packing would read,
// write and read again what is needed once. Rows of all query heads of a group share each read.
//
//   scores     R rows x K keys of accumulators (R * K = 16), lanes are channels, summed 16 vectors at a time
//   products   2 rows x 8 vectors of channels
//
// Both read K and V strictly in the order of memory, which hardware prefetchers follow. 16 rows read side by side, or
// prefetch instructions, stop at what L1 misses in flight allow (Zen 4: 24 lines, 12 GB/s).
//
// Non-finite elements are not looked for beforehand: they show in the raw scores and in O, and such rows are computed
// again by exact_row(). Source of the idea: flash-decoding; the cut of the keys is the plan's.
#pragma once

#include "kernel/item_kernel.h"

namespace clary {

template <class V, DType T>
class Direct : ItemKernel<V, ExactScheme> {
 public:
  explicit Direct(const AttendArgs& args) : Base(args), p_(*args.problem) {}

  void run() {
    this->begin();
    for (int64_t block = a_.block_begin; block < a_.block_end; ++block) {
      Unit u = this->unit_of(0, block, 1);
      bool in_range = false;
      if (!this->find_panels(u, in_range)) continue;
      const auto mask = rules_.look_at_mask(u);
      if (mask == MaskState::hides_all) continue;
      for_rows(u.rows, [&](int r, auto rows) { scores<rows>(u, r); });
      rules_.apply(u, mask == MaskState::hides_some);
      softmax_.floating(u);
      products(u);
    }
    find_nonfinite_rows();
    this->end();
  }

 private:
  using Base = ItemKernel<V, ExactScheme>;
  using Base::a_, Base::s_, Base::rules_, Base::softmax_;
  using F32 = typename V::F32;
  using MaskState = typename Rules<V, ExactScheme>::MaskState;
  static constexpr int kAccumulators = V::kTileRows * V::kTileVectors;
  // body(first row, integral constant) over 4, 2 and 1 rows at a time.
  template <class Body>
  static void for_rows(int rows, Body&& body) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) body(r, std::integral_constant<int, 4>());
    if (r + 2 <= rows) body(r, std::integral_constant<int, 2>()), r += 2;
    if (r < rows) body(r, std::integral_constant<int, 1>());
  }

  const char* key_row(int64_t key) const { return row(a_.tensors->k, p_.k, key); }
  const char* value_row(int64_t key) const { return row(a_.tensors->v, p_.v, key); }
  const char* row(const void* base, const Strides& strides, int64_t key) const {
    const int64_t index =
        a_.sequence.batch * strides.batch + a_.head_kv * strides.head + (a_.sequence.k_begin + key) * strides.row;
    return static_cast<const char*>(base) + index * size_bytes(T);
  }

  // Channels c .. c + 15 of a row; only the last vector may be cut.
  [[gnu::always_inline]] static F32 load(const char* row, int64_t c, int64_t dim) {
    if (c + 16 <= dim) return Rows<V>::load(row, T, c);
    alignas(64) char tail[64] = {};
    std::memcpy(tail, row + c * size_bytes(T), static_cast<size_t>((dim - c) * size_bytes(T)));
    return Rows<V>::load(tail, T, 0);
  }

  int existing_keys(const Unit& u) const {
    const int64_t left = a_.sequence.len_k - u.block * kBlockKeys;
    return static_cast<int>(left < u.panel_end * kPanelKeys ? left : u.panel_end * kPanelKeys);
  }

  template <int R>
  void scores(const Unit& u, int first_row) {
    constexpr int K = kAccumulators / R;
    const int begin = u.panel_begin * kPanelKeys, end = existing_keys(u);
    const F32 scale = V::set(s_.q_scale[0]);
    F32 odd = V::zero();  // x - x: NaN where x is not finite
    for (int key = begin; key < end; key += K) {
      alignas(64) float sums[16] = {};  // R * K of them
      raw_scores<R, K>(u, first_row, key, end, sums);
      const F32 x = V::mul(V::load(sums), scale);
      odd = V::add(odd, V::sub(x, x));
      V::store(sums, x);
      for (int r = 0; r < R; ++r)
        std::memcpy(s_.s + (first_row + r) * kBlockKeys + key, sums + r * K, K * sizeof(float));
    }
    const F32 hidden = V::set(-std::numeric_limits<float>::infinity());
    for (int r = 0; r < R; ++r) {
      if (V::reduce_add(odd) != 0) s_.exact[first_row + r] = 1;
      hide_tail(s_.s + (first_row + r) * kBlockKeys, end, u.panel_end * kPanelKeys, hidden);
    }
  }

  static void hide_tail(float* s, int end, int padded, F32 hidden) {
    for (; end < padded && end % 16 != 0; ++end) s[end] = -std::numeric_limits<float>::infinity();
    for (; end < padded; end += 16) V::store(s + end, hidden);
  }

  // R x K products over the channels; sums[r * K + k].
  template <int R, int K>
  [[gnu::always_inline]] void raw_scores(const Unit& u, int first_row, int key, int end, float* sums) const {
    const char* rows[K];
    const int64_t first = u.block * kBlockKeys, last = end - 1;
    for (int k = 0; k < K; ++k) rows[k] = key_row(first + (key + k < last ? key + k : last));
    const auto* q = reinterpret_cast<const float*>(s_.q + first_row * s_.q_stride);
    F32 acc[R * K];
    unroll<R * K>([&](auto i) __attribute__((always_inline)) { acc[i] = V::zero(); });
    const int64_t whole = p_.dim_qk / 16 * 16;
    unroll<K>([&](auto k) __attribute__((always_inline)) {
      const auto add = [&](F32 x, int64_t c) __attribute__((always_inline)) {
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          acc[r * K + k] = V::mul_add(x, V::load(q + r * s_.q_stride + c), acc[r * K + k]);
        });
      };
#pragma GCC unroll 4
      for (int64_t c = 0; c < whole; c += 16) add(Rows<V>::load(rows[k], T, c), c);
      if (whole < p_.dim_qk) add(load(rows[k], whole, p_.dim_qk), whole);
    });
    if constexpr (R * K == 16) {
      V::store(sums, V::reduce_add16(acc));
    } else {
      for (int i = 0; i < R * K; ++i) sums[i] = V::reduce_add(acc[i]);
    }
  }

  // One panel of V at a time, so that rows beyond the first pair find it in L1.
  void products(const Unit& u) {
    for (int panel = u.panel_begin; panel < u.panel_end; ++panel) {
      const int begin = panel * kPanelKeys, all = existing_keys(u);
      const int end = begin + kPanelKeys < all ? begin + kPanelKeys : all;
      for_rows(u.rows, [&](int r, auto rows) { product_channels<rows>(u, r, begin, end); });
    }
  }

  template <int R>
  void product_channels(const Unit& u, int r, int begin, int end) {
    constexpr int kMost = kAccumulators / R < 8 ? kAccumulators / R : 8, kSome = kMost < 4 ? kMost : 4;
    int64_t c = 0;
    for (; c + kMost * 16 <= p_.dim_v; c += kMost * 16) product<R, kMost>(u, r, begin, end, c);
    for (; c + kSome * 16 <= p_.dim_v; c += kSome * 16) product<R, kSome>(u, r, begin, end, c);
    for (; c < p_.dim_v; c += 16) product<R, 1>(u, r, begin, end, c);
  }

  // R rows x N vectors of channels over keys [begin, end). O is rescaled with the first panel.
  template <int R, int N>
  void product(const Unit& u, int first_row, int begin, int end, int64_t channel) {
    const float* p = s_.s + first_row * kBlockKeys;
    F32 acc[R][N];
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<N>([&](auto n) __attribute__((always_inline)) { acc[r][n] = V::zero(); });
    });
    const int64_t first = u.block * kBlockKeys;
    for (int key = begin; key < end; ++key) {
      const char* v = value_row(first + key);
      F32 weight[R];
      unroll<R>([&](auto r) __attribute__((always_inline)) { weight[r] = V::set(p[r * kBlockKeys + key]); });
      unroll<N>([&](auto n) __attribute__((always_inline)) {
        const F32 x = N > 1 ? Rows<V>::load(v, T, channel + n * 16) : load(v, channel, p_.dim_v);
        unroll<R>([&](auto r) __attribute__((always_inline)) { acc[r][n] = V::mul_add(x, weight[r], acc[r][n]); });
      });
    }
    const bool first_panel = begin == u.panel_begin * kPanelKeys;
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      float* o = s_.o + int64_t{first_row + r} * a_.sizes->value_width + channel;
      const F32 alpha = V::set(first_panel ? s_.alpha[first_row + r] : 1.0f);
      unroll<N>([&](auto n) __attribute__((always_inline)) {
        V::store(o + n * 16, V::mul_add(V::load(o + n * 16), alpha, acc[r][n]));
      });
    });
  }

  void find_nonfinite_rows() {
    const int width = a_.sizes->value_width;
    for (int r = 0; r < a_.count; ++r) {
      F32 odd = V::zero();
      for (int c = 0; c < width; c += 16) {
        const F32 x = V::load(s_.o + int64_t{r} * width + c);
        odd = V::add(odd, V::sub(x, x));
      }
      if (V::reduce_add(odd) != 0) s_.exact[r] = 1;
    }
  }

  const Problem& p_;
};

}  // namespace clary
