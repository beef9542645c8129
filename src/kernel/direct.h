// Few query rows: K and V are read once, as the caller holds them, in f32 arithmetic; nothing is packed.
//
// With up to 16 rows per key-value head (decoding) a call is bound by the bandwidth of memory, and packing would read,
// write and read again what is needed once. Rows of all query heads of a group share each read.
//
//   scores     R rows x K keys of accumulators (R * K = kSums), lanes are channels
//   products   R rows x 2 or 4 keys of weights, sums of a block in L1; of one row of f32 alone 4 or 8 vectors of sums
//   bf16       widened in pairs, the even ones of 32 by a shift and the odd ones by a mask; Q and sums in that order
//
// Both read K and V in the order of memory, which hardware prefetchers follow, and all rows meet a key while it is in
// L1. 16 rows read side by side stop at what L1 misses in flight allow (Zen 4: 24 lines, 12 GB/s).
//
// Non-finite elements are not looked for beforehand: they show in the raw scores and in O, and such rows are computed
// again by exact_row(). Source of the idea: flash-decoding; the cut of the keys is the plan's.
#pragma once

#include <algorithm>
#include <atomic>

#include "kernel/item_kernel.h"

namespace clary {

template <class V, DType T>
class Direct : ItemKernel<V, ExactScheme> {
 public:
  explicit Direct(const AttendArgs& args) : Base(args), p_(*args.problem) {}

  void run() {
    this->begin();
    if constexpr (T == DType::bf16)
      for (int r = 0; r < a_.count; ++r) split<false>(reinterpret_cast<float*>(s_.q + r * s_.q_stride), s_.q_stride);
    for (int64_t block = a_.block_begin; block < a_.block_end; ++block) {
      Unit u = this->unit_of(0, block, 1);
      bool in_range = false;
      if (!this->find_panels(u, in_range)) continue;
      const auto mask = rules_.look_at_mask(u);
      if (mask == MaskState::hides_all) continue;
      for (int panel = u.panel_begin; panel < u.panel_end; ++panel) scores(u, panel);
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
  using I32 = typename V::I32;
  // Accumulators of scores: 16, or 4 of few registers.
  static constexpr int kSums = V::kTileRows * V::kTileVectors;
  // Products: weights of kKeys keys x R rows, kKeys vectors of V and a sum in 32 or 16 registers.
  template <int R>
  static constexpr int kKeys = R == 4 && kSums < 16 ? 2 : 4;

  // 16-bit rows take so much arithmetic per byte that out-of-order execution sees little of what comes next, and
  // hardware prefetchers stop at each page. So far ahead, one row is 8 to 20 % faster on Zen 3 (1 and 3 KB: 2 to 5 %);
  // f32 is slower, and sets of 32 registers have not been measured.
  static constexpr int kAhead = size_bytes(T) == 2 && kSums < 16 ? 2048 : 0;
  [[gnu::always_inline]] static void prefetch(const char* line) {
    if constexpr (kAhead > 0) __builtin_prefetch(line + kAhead);
  }

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

  // The channels of a row from c on, less than 32, and zeros.
  [[gnu::always_inline]] static void copy_tail(const char* row, int64_t c, int64_t dim, char (&to)[128]) {
    std::memset(to, 0, sizeof to);
    std::memcpy(to, row + c * size_bytes(T), static_cast<size_t>((dim - c) * size_bytes(T)));
  }

  // bf16: each 32 floats of a row become their even ones and then the odd ones, or (kBack) these become those.
  template <bool kBack>
  static void split(float* row, int64_t dim) {
    for (int64_t c = 0; c < dim; c += 32) {
      float from[32];
      std::memcpy(from, row + c, sizeof from);
      for (int i = 0; i < 16; ++i)
        for (int odd = 0; odd < 2; ++odd)
          kBack ? row[c + 2 * i + odd] = from[odd * 16 + i] : row[c + odd * 16 + i] = from[2 * i + odd];
    }
  }

  // The end of what any row sees of a panel.
  int end_of(const Unit& u, int panel) const { return std::min(u.seen_keys, (panel + 1) * kPanelKeys); }

  // Raw products first, all rows for kSums keys and then the next ones; then what makes scores of them.
  void scores(const Unit& u, int panel) {
    const int begin = panel * kPanelKeys, end = end_of(u, panel);
    for (int key = begin; key < round_up(end, 16); key += kSums) {
      const char* rows[kSums];  // keys from `end` on are read as the last one
      for (int k = 0; k < kSums; ++k) rows[k] = key_row(u.block * kBlockKeys + std::min(key + k, end - 1));
      for_rows<4>(u.rows, [&](int r, auto count) {
        constexpr int kAtOnce = kSums / count;
        for (int k = 0; k < kSums; k += kAtOnce) raw_scores<count>(rows + k, r, key + k);
      });
    }
    const F32 scale = V::set(s_.q_scale[0]), hidden = V::set(-std::numeric_limits<float>::infinity());
    for (int r = 0; r < u.rows; ++r) {
      float* const s = s_.s + r * kBlockKeys;
      F32 odd = V::zero();  // x - x: NaN where x is not finite
      for (int key = begin; key < end; key += 16) {
        const F32 x = V::mul(V::load(s + key), scale);
        odd = V::add(odd, V::sub(x, x));
        V::store(s + key, x);
      }
      if (V::reduce_add(odd) != 0) s_.exact[r] = 1;
      hide_tail(s, end, begin + kPanelKeys, hidden);
    }
  }

  static void hide_tail(float* s, int end, int padded, F32 hidden) {
    for (; end < padded && end % 16 != 0; ++end) s[end] = -std::numeric_limits<float>::infinity();
    for (; end < padded; end += 16) V::store(s + end, hidden);
  }

  // R rows x kSums / R keys, one key after the other: in the order of memory.
  template <int R>
  [[gnu::always_inline]] void raw_scores(const char* const* rows, int first_row, int key) const {
    constexpr int K = kSums / R;
    const auto* q = reinterpret_cast<const float*>(s_.q + first_row * s_.q_stride);
    const int64_t q_stride = s_.q_stride, whole = p_.dim_qk / 32 * 32;
    F32 acc[kSums];
    unroll<kSums>([&](auto i) __attribute__((always_inline)) { acc[i] = V::zero(); });
    unroll<K>([&](auto k) __attribute__((always_inline)) {
      const auto add_32 = [&](const char* from, int64_t c) __attribute__((always_inline)) {
        unroll<2>([&](auto half) __attribute__((always_inline)) {
          const F32 x = load_half(from, half);
          unroll<R>([&](auto r) __attribute__((always_inline)) {
            acc[r * K + k] = V::mul_add(x, V::load(q + r * q_stride + c + half * 16), acc[r * K + k]);
          });
        });
      };
      for (int64_t c = 0; c < whole; c += 32) {
        const char* const line = rows[k] + c * size_bytes(T);
        if (first_row == 0) prefetch(line);
        add_32(line, c);
      }
      if (whole == p_.dim_qk) return;
      char tail[128];
      copy_tail(rows[k], whole, p_.dim_qk, tail);
      add_32(tail, whole);
    });
    float sums[kSums];
    if constexpr (kSums == 16) {
      V::store(sums, V::reduce_add16(acc));
    } else {
      V::reduce_add4(acc, sums);
    }
    for (int r = 0; r < R; ++r) std::memcpy(s_.s + (first_row + r) * kBlockKeys + key, sums + r * K, K * sizeof(float));
  }

  // bf16 at the even or the odd places of 32.
  [[gnu::always_inline]] static F32 widen(I32 pairs, int odd) {
    return V::as_f32(odd == 0 ? V::template shift_left<16>(pairs) : V::and_i32(pairs, V::set_i32(-65536)));
  }

  void products(const Unit& u) {
    const int end = end_of(u, u.panel_end - 1);
    const int64_t stride = sums_stride(), width = a_.sizes->value_width;
    std::memset(s_.spare, 0, static_cast<size_t>(u.rows * stride) * sizeof(float));
    if (T == DType::f32 && u.rows == 1) {
      for (int panel = u.panel_begin; panel < u.panel_end; ++panel) add_panel(u, panel);
    } else {
      for (int key = u.panel_begin * kPanelKeys; key < end; key += 16)
        for_rows<4>(u.rows, [&](int r, auto rows) { add_keys<rows>(u, r, key, std::min(key + 16, end)); });
    }
    for (int r = 0; r < u.rows; ++r) {
      const F32 alpha = V::set(s_.alpha[r]);
      float *const o = s_.o + r * width, *const sums = s_.spare + r * stride;
      if constexpr (T == DType::bf16) split<true>(sums, stride);
      for (int64_t c = 0; c < width; c += 16) V::store(o + c, V::mul_add(V::load(o + c), alpha, V::load(sums + c)));
    }
  }

  // 16 of 32 channels of a row of V: of bf16 the even or the odd ones, of others the first or the last ones.
  [[gnu::always_inline]] static F32 load_half(const char* row, int half) {
    if constexpr (T == DType::bf16) return widen(V::load_i32(row), half);
    return Rows<V>::load(row, T, half * 16);
  }

  // One row's sums += the keys of a panel times V: nothing is shared, so sums stay in registers.
  void add_panel(const Unit& u, int panel) {
    constexpr int kMost = kSums < 8 ? kSums : 8;  // vectors of sums
    int64_t c = 0;
    for (; c + kMost * 16 <= p_.dim_v; c += kMost * 16) add_panel<kMost>(u, panel, c);
    for (; c < p_.dim_v; c += 32) add_panel<2>(u, panel, c);
  }

  template <int N>
  void add_panel(const Unit& u, int panel, int64_t channel) {
    F32 sum[N];
    unroll<N>([&](auto n) __attribute__((always_inline)) { sum[n] = V::load(s_.spare + channel + n * 16); });
    const bool cut = channel + N * 16 > p_.dim_v;
    for (int key = panel * kPanelKeys, end = end_of(u, panel); key < end; ++key) {
      const char* v = value_row(u.block * kBlockKeys + key);
      char tail[128];
      if (cut) copy_tail(v, channel, p_.dim_v, tail);
      const char* from = cut ? tail : v + channel * size_bytes(T);
      const F32 weight = V::set(s_.s[key]);
      unroll<N>([&](auto n) __attribute__((always_inline)) {
        sum[n] = V::mul_add(load_half(from + n / 2 * 32 * size_bytes(T), n % 2), weight, sum[n]);
      });
    }
    unroll<N>([&](auto n) __attribute__((always_inline)) { V::store(s_.spare + channel + n * 16, sum[n]); });
  }

  // R rows' sums of a block += the keys from `key` to `end` times V.
  template <int R>
  void add_keys(const Unit& u, int first_row, int key, int end) {
    const int64_t stride = sums_stride();
    float* const sums = s_.spare + first_row * stride;
    for (; key < end; key += kKeys<R>) {
      // Keys from `end` on weigh nothing and are read as the last one.
      const char* rows[kKeys<R>];
      F32 weight[R][kKeys<R>];
      unroll<kKeys<R>>([&](auto k) __attribute__((always_inline)) {
        rows[k] = value_row(u.block * kBlockKeys + std::min(key + k, end - 1));
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          weight[r][k] = V::set(key + k < end ? s_.s[(first_row + r) * kBlockKeys + key + k] : 0);
        });
      });
      add_rows(rows, weight, sums, stride, p_.dim_v);
    }
  }

  template <int R, int K>
  [[gnu::always_inline]] static void add_rows(const char* (&rows)[K], const F32 (&weight)[R][K], float* sums,
                                              int64_t stride, int64_t dim) {
    const int64_t whole = dim / 32 * 32;
    for (int64_t c = 0; c < whole; c += 32, sums += 32) {
      unroll<K>([&](auto k) __attribute__((always_inline)) { prefetch(rows[k]); });
      add_32(rows, weight, sums, stride);
      unroll<K>([&](auto k) __attribute__((always_inline)) { rows[k] += 32 * size_bytes(T); });
    }
    if (whole == dim) return;
    char tails[K][128];
    for (int k = 0; k < K; ++k) copy_tail(rows[k], 0, dim - whole, tails[k]), rows[k] = tails[k];
    add_32(rows, weight, sums, stride);
  }

  template <int R, int K>
  [[gnu::always_inline]] static void add_32(const char* const (&rows)[K], const F32 (&weight)[R][K], float* sums,
                                            int64_t stride) {
    unroll<2>([&](auto half) __attribute__((always_inline)) {
      F32 x[K];
      unroll<K>([&](auto k) __attribute__((always_inline)) { x[k] = load_half(rows[k], half); });
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        float* const to = sums + r * stride + half * 16;
        F32 sum = V::load(to);
        unroll<K>([&](auto k) __attribute__((always_inline)) { sum = V::mul_add(x[k], weight[r][k], sum); });
        V::store(to, sum);
      });
      std::atomic_signal_fence(std::memory_order_seq_cst);  // or all words of both halves take registers
    });
  }

  // Sums lie in whole 32 channels.
  int64_t sums_stride() const { return round_up(p_.dim_v, 32); }

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
