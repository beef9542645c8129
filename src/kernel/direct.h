// Few query rows: K and V are read once, as the caller holds them, in f32 arithmetic; nothing is packed.
//
// With up to 16 rows per key-value head (decoding) a call is bound by the bandwidth of memory, and packing would read,
// write and read again what is needed once. Rows of all query heads of a group share each read.
//
//   scores     R rows x K keys of accumulators (R * K = 16, or 4 of few registers), lanes are channels
//   products   R rows x 4 keys of weights, sums of a block in L1; of one row alone 4 or 8 vectors of sums
//
// Both read K and V in the order of memory, which hardware prefetchers follow, and all rows meet a key while it is in
// L1. 16 rows read side by side, or prefetch instructions, stop at what L1 misses in flight allow (Zen 4: 24 lines,
// 12 GB/s).
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
      for (int panel = u.panel_begin; panel < u.panel_end; ++panel)
        for_rows<4>(u.rows, [&](int r, auto rows) { scores<rows>(u, r, panel); });
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
  // Products: weights of kKeys keys x kMostRows rows, kKeys vectors of V and a sum in 32 or 16 registers.
  static constexpr int kKeys = 4, kMostRows = kAccumulators < 16 ? 2 : 4;

  // body(first row, integral constant) over R, R / 2, ... and 1 rows at a time.
  template <int R, class Body>
  [[gnu::always_inline]] static void for_rows(int rows, Body&& body, int r = 0) {
    for (; r + R <= rows; r += R) body(r, std::integral_constant<int, R>());
    if constexpr (R > 1) for_rows<R / 2>(rows, body, r);
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

  // The end of what exists of a panel's keys.
  int end_of(const Unit& u, int panel) const {
    const int64_t left = a_.sequence.len_k - u.block * kBlockKeys, end = (panel + 1) * kPanelKeys;
    return static_cast<int>(left < end ? left : end);
  }

  template <int R>
  void scores(const Unit& u, int first_row, int panel) {
    constexpr int K = kAccumulators / R;
    const int begin = panel * kPanelKeys, end = end_of(u, panel);
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
      hide_tail(s_.s + (first_row + r) * kBlockKeys, end, begin + kPanelKeys, hidden);
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

  void products(const Unit& u) {
    const int width = a_.sizes->value_width, end = end_of(u, u.panel_end - 1);
    std::memset(s_.spare, 0, static_cast<size_t>(u.rows * width) * sizeof(float));
    if (u.rows == 1) {
      for (int panel = u.panel_begin; panel < u.panel_end; ++panel) add_panel(u, panel);
    } else {
      for (int key = u.panel_begin * kPanelKeys; key < end; key += kKeys)
        for_rows<kMostRows>(u.rows, [&](int r, auto rows) { add_keys<rows>(u, r, key, end); });
    }
    for (int r = 0; r < u.rows; ++r) {
      const F32 alpha = V::set(s_.alpha[r]);
      for (int64_t c = int64_t{r} * width; c < int64_t{r + 1} * width; c += 16)
        V::store(s_.o + c, V::mul_add(V::load(s_.o + c), alpha, V::load(s_.spare + c)));
    }
  }

  // One row's sums += the keys of a panel times V: nothing is shared, so sums stay in registers.
  void add_panel(const Unit& u, int panel) {
    constexpr int kMost = kAccumulators < 8 ? kAccumulators : 8;
    int64_t c = 0;
    for (; c + kMost * 16 <= p_.dim_v; c += kMost * 16) add_panel<kMost>(u, panel, c);
    for (; c < p_.dim_v; c += 16) add_panel<1>(u, panel, c);
  }

  template <int N>
  void add_panel(const Unit& u, int panel, int64_t channel) {
    F32 sum[N];
    unroll<N>([&](auto n) __attribute__((always_inline)) { sum[n] = V::load(s_.spare + channel + n * 16); });
    for (int key = panel * kPanelKeys, end = end_of(u, panel); key < end; ++key) {
      const char* v = value_row(u.block * kBlockKeys + key);
      const F32 weight = V::set(s_.s[key]);
      unroll<N>([&](auto n) __attribute__((always_inline)) {
        const F32 x = N > 1 ? Rows<V>::load(v, T, channel + n * 16) : load(v, channel, p_.dim_v);
        sum[n] = V::mul_add(x, weight, sum[n]);
      });
    }
    unroll<N>([&](auto n) __attribute__((always_inline)) { V::store(s_.spare + channel + n * 16, sum[n]); });
  }

  // R rows' sums of a block += kKeys keys times V. Keys from `end` on weigh nothing and are read as the last one.
  template <int R>
  void add_keys(const Unit& u, int first_row, int key, int end) {
    const char* rows[kKeys];
    F32 weight[R][kKeys];
    unroll<kKeys>([&](auto k) __attribute__((always_inline)) {
      rows[k] = value_row(u.block * kBlockKeys + (key + k < end ? key + k : end - 1));
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        weight[r][k] = V::set(s_.s[(first_row + r) * kBlockKeys + key + k]);
      });
    });
    const int width = a_.sizes->value_width;
    float* const sums = s_.spare + int64_t{first_row} * width;
    const auto add = [&](int64_t c, auto&& load) __attribute__((always_inline)) {
      F32 x[kKeys];
      unroll<kKeys>([&](auto k) __attribute__((always_inline)) { x[k] = load(rows[k]); });
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        F32 sum = V::load(sums + r * width + c);
        unroll<kKeys>([&](auto k) __attribute__((always_inline)) { sum = V::mul_add(x[k], weight[r][k], sum); });
        V::store(sums + r * width + c, sum);
      });
    };
    const int64_t whole = p_.dim_v / 16 * 16;
    for (int64_t c = 0; c < whole; c += 16)
      add(
          c, [&](const char* row) __attribute__((always_inline)) { return Rows<V>::load(row, T, c); });
    if (whole < p_.dim_v) add(whole, [&](const char* row) { return load(row, whole, p_.dim_v); });
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
