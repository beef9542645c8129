// The values of a block. For the vector engine: the largest of each channel first, where codes need a scale, then step
// by step, straight from V. For the matrix engine: all rows as floats, then tiles of 16 steps.
#pragma once

#include "kernel/tiles/layout.h"
#include "quant/block.h"

namespace clary {

template <class V, class S>
class ValuePacker : BlockPacker<V, S> {
 public:
  // inverse: [value_width]; rows: [9][value_width], on the matrix engine [256][value_width]
  ValuePacker(const BlockPacker<V, S>& block, float* inverse, float* rows)
      : Base(block), inverse_(inverse), rows_(rows) {}

  void run() {
    if constexpr (kUsesTiles<V, S>) {
      pack_tiles();
    } else {
      with_dtype(a_.problem->dtype, [&](auto dtype) { this->template pack_values<dtype>(); });
    }
  }

 private:
  using Base = BlockPacker<V, S>;
  using Base::a_, Base::sizes_, Base::head_, Base::keys_;
  using Base::has, Base::row, Base::load_value, Base::bf16_pair, Base::round_bf16, Base::mark_nonfinite;
  using typename Base::F32, typename Base::I32;
  // Keys that share 4 bytes.
  static constexpr int kPerStep = S::kSplit ? 2 : elements_per_step(S::kPv);
  static constexpr int kSteps = kInPairs<V, S::kPv> ? 2 : 1;  // that are stored together
  static constexpr int kStepKeys = kSteps * kPerStep;

  template <DType T>
  void pack_values() {
    bool finite = true;
    if constexpr (S::kIntegerPv) {
      const int64_t dim = a_.problem->dim_v;
      int c = 0;
      for (; c + kGroupChannels <= dim; c += kGroupChannels) finite &= find_scales<T, 4>(c);
      for (; c + 16 <= dim; c += 16) finite &= find_scales<T, 1>(c);
      if (c < dim) finite &= find_scales<T, 0>(c);
      if (!finite) find_scales_of_finite();
      write_steps<T>(finite);
    } else if (!write_steps<T>(true)) {
      write_steps<T>(false);
    }
  }

  template <bool kCentre>
  [[gnu::always_inline]] static F32 centre(F32 x, const float* mean) {
    if constexpr (S::kCentreValues && kCentre) return V::sub(x, V::load(mean));
    return x;
  }

  // Scales of N vectors of channels; 0: of the last one, which is not whole. False if there is anything that is not
  // finite: magnitudes compare as integers do, and what is not finite is larger than all that is.
  template <DType T, int N>
  bool find_scales(int channel) {
    constexpr int kVectors = N > 0 ? N : 1;
    const int dim = static_cast<int>(a_.problem->dim_v);
    const float* const mean = head_.value_mean + channel;
    I32 largest[kVectors];
    unroll<kVectors>([&](auto n) __attribute__((always_inline)) { largest[n] = V::set_i32(0); });
    for (int key = 0; key < keys_; ++key) {
      if (!has(key)) continue;
      const void* from = row(a_.tensors->v, a_.problem->v, key);
      const auto add = [&](F32 x, auto n) __attribute__((always_inline)) {
        largest[n] = V::max_i32(largest[n], V::as_i32(V::abs(centre<true>(x, mean + n * 16))));
      };
      unroll<kVectors>([&](auto n) __attribute__((always_inline)) {
        if constexpr (N > 0)
          add(Rows<V>::load(from, T, channel + n * 16), n);
        else
          add(Rows<V>::load_end(from, T, channel, dim), n);
      });
    }
    bool finite = true;
    unroll<kVectors>([&](auto n) __attribute__((always_inline)) {
      finite = finite && Rows<V>::is_finite(V::as_f32(largest[n]));
      set_scale(channel + n * 16, V::as_f32(largest[n]));
    });
    return finite;
  }

  void pack_tiles() {
    const int padded = static_cast<int>(round_up(keys_, kPanelKeys)), width = sizes_.value_width;
    for (int key = 0; key < padded; ++key) {
      load_value(key, rows_ + key * width);
      if constexpr (S::kSplit) drop_huge(key);
    }
    std::byte* const values = head_.values + a_.block * sizes_.value_block_bytes;
    for (int c = 0; c < width; c += 16) {
      if constexpr (S::kIntegerPv) {
        F32 largest = V::zero();
        for (int key = 0; key < padded; ++key) largest = V::max(largest, V::abs(V::load(rows_ + key * width + c)));
        set_scale(c, largest);
      }
      pack_channel_tiles(c, padded, values);
    }
    if constexpr (S::kSplit) {
      if (!has_low_halves(*a_.problem)) return;
      for (int i = 0; i < padded * width; i += 16) V::store(rows_ + i, low_half(V::load(rows_ + i)));
      for (int c = 0; c < width; c += 16) pack_channel_tiles(c, padded, values + sizes_.value_block_bytes / 2);
    }
  }

  // Sums of P times values beyond 2^96 might leave f32, for P goes up to 2^30: as if not finite, rows that see such a
  // value are computed by the definition.
  void drop_huge(int key) {
    float* const x = rows_ + key * sizes_.value_width;
    F32 largest = V::zero();
    for (int c = 0; c < sizes_.value_width; c += 16) largest = V::max(largest, V::abs(V::load(x + c)));
    if (V::reduce_max(largest) <= 0x1p96f) return;
    std::memset(x, 0, static_cast<size_t>(sizes_.value_width) * 4);
    mark_nonfinite(key);
  }

  // What rounding to bf16 leaves.
  static F32 low_half(F32 x) {
    const I32 high_half = V::set_i32(static_cast<int32_t>(0xffff0000u));
    return V::sub(x, V::as_f32(V::and_i32(round_bf16(x), high_half)));
  }

  // 16 channels of all keys of the block, as tiles of 16 steps of keys.
  void pack_channel_tiles(int channel, int padded_keys, std::byte* values) {
    constexpr int kTileKeys = 16 * kPerStep;
    auto* to = reinterpret_cast<uint32_t*>(values) +
               int64_t{channel / 32 * (kBlockKeys / kTileKeys) * 2 + channel / 16 % 2} * kTileDwords;
    for (int key = 0; key < padded_keys; key += kTileKeys, to += 2 * kTileDwords) {
      I32 words[16];
      for (int step = 0; step < 16; ++step) {
        F32 x[kPerStep];
        for (int k = 0; k < kPerStep; ++k)
          x[k] = V::load(rows_ + (key + step * kPerStep + k) * sizes_.value_width + channel);
        words[step] = value_word(x, inverse_ + channel);
      }
      V::transpose16(words);
      for (int c = 0; c < 16; ++c) V::store_i32(to + c * 16, words[c]);
    }
  }

  void find_scales_of_finite() {
    float* const largest = rows_ + sizes_.value_width;
    std::memset(largest, 0, static_cast<size_t>(sizes_.value_width) * 4);
    for (int key = 0; key < keys_; ++key) {
      load_value(key, rows_);
      for (int c = 0; c < sizes_.value_width; c += 16)
        V::store(largest + c, V::max(V::load(largest + c), V::abs(V::load(rows_ + c))));
    }
    for (int c = 0; c < sizes_.value_width; c += 16) set_scale(c, V::load(largest + c));
  }

  // The scale of 16 channels of this block (with the 1/255 of P), and the inverse of the scale of V alone.
  void set_scale(int channel, F32 largest) {
    V::store(head_.value_scales + a_.block * sizes_.value_width + channel, V::mul(largest, V::set(1.0f / (127 * 255))));
    // A constant channel is zero after centring, up to rounding: any finite inverse gives code 0 or a faithful one.
    constexpr float kSmallest = 1e-30f;
    V::store(inverse_ + channel, V::div(V::set(127), V::max(largest, V::set(kSmallest))));
  }

  // Whole steps straight from V, others from rows that load_value() wrote. Returns whether V is finite, where no scale
  // has told that before.
  template <DType T>
  bool write_steps(bool finite) {
    const int width = sizes_.value_width;
    float* const zeros = rows_ + kStepKeys * width;
    std::memset(zeros, 0, static_cast<size_t>(width) * 4);
    I32 largest = V::set_i32(0);
    for (int step = 0; step * kPerStep < round_up(keys_, kPanelKeys); step += kSteps) {
      const int first = step * kPerStep;
      const void* rows[kStepKeys];
      bool whole = finite;
      for (int k = 0; k < kStepKeys; ++k) {
        whole = whole && has(first + k);
        if (whole) rows[k] = row(a_.tensors->v, a_.problem->v, first + k);
      }
      if (whole) {
        write_step<T, true>(step, rows, largest);
        continue;
      }
      for (int k = 0; k < kStepKeys; ++k) {
        rows[k] = has(first + k) ? rows_ + k * width : zeros;
        if (has(first + k)) load_value(first + k, rows_ + k * width);
      }
      write_step<DType::f32, false>(step, rows, largest);
    }
    return Rows<V>::is_finite(V::as_f32(largest));
  }

  // All channels of kSteps steps.
  template <DType T, bool kCentre>
  [[gnu::always_inline]] void write_step(int step, const void* const (&rows)[kStepKeys], I32& largest) const {
    auto* to = reinterpret_cast<uint32_t*>(head_.values + a_.block * sizes_.value_block_bytes);
    const int width = sizes_.value_width, dim = static_cast<int>(a_.problem->dim_v);
    for (int first = 0; first < width; first += kGroupChannels, to += kBlockKeys / kPerStep * kGroupChannels) {
      const int count = width - first < kGroupChannels ? width - first : kGroupChannels;
      uint32_t* words = to + step * count;
      for (int c = first; c < first + count; c += 16, words += 16) {
        if (c + 16 <= dim)
          write_words<kCentre>(
              c, words, count,
              largest, [&](int k) __attribute__((always_inline)) { return Rows<V>::load(rows[k], T, c); });
        else
          write_words<kCentre>(
              c, words, count,
              largest, [&](int k) __attribute__((always_inline)) { return Rows<V>::load_end(rows[k], T, c, dim); });
      }
    }
  }

  // 16 channels; load(k): of key k.
  template <bool kCentre, class Load>
  [[gnu::always_inline]] void write_words(int c, uint32_t* to, int step_words, I32& largest, Load&& load) const {
    I32 words[kSteps];
    unroll<kSteps>([&](auto s) __attribute__((always_inline)) {
      F32 x[kPerStep];
      unroll<kPerStep>([&](auto k) __attribute__((always_inline)) {
        x[k] = centre<kCentre>(load(s * kPerStep + k), head_.value_mean + c);
        if constexpr (!S::kIntegerPv) largest = V::max_i32(largest, V::as_i32(V::abs(x[k])));
      });
      words[s] = value_word(x, inverse_ + c);
    });
    if constexpr (kSteps == 2) V::interleave(words[0], words[1]);
    unroll<kSteps>([&](auto s) __attribute__((always_inline)) { V::store_i32(to + s * step_words, words[s]); });
  }

  // One step of 16 channels: 4 bytes each, of one key after the other.
  [[gnu::always_inline]] static I32 value_word(const F32 (&x)[kPerStep], const float* inverses) {
    if constexpr (S::kPv == Element::f32) {
      return V::as_i32(x[0]);
    } else if constexpr (S::kPv == Element::bf16 || S::kSplit) {
      return bf16_pair(x[0], x[1]);
    } else {
      const F32 inverse = V::load(inverses);
      if constexpr (S::kPv == Element::i8w)
        return V::or_i32(V::and_i32(to_code(x[0], inverse), V::set_i32(0xffff)),
                         V::template shift_left<16>(to_code(x[1], inverse)));
      else
        return V::or_i32(V::or_i32(code(x[0], inverse), V::template shift_left<8>(code(x[1], inverse))),
                         V::or_i32(V::template shift_left<16>(code(x[2], inverse)),
                                   V::template shift_left<24>(code(x[3], inverse))));
    }
  }

  static I32 to_code(F32 x, F32 inverse) { return V::to_i32(V::mul(x, inverse)); }
  static I32 code(F32 x, F32 inverse) {
    const I32 c = to_code(x, inverse);
    return V::and_i32(V::kUnsignedValues ? V::add_i32(c, V::set_i32(128)) : c, V::set_i32(255));
  }

  float* const inverse_;
  float* const rows_;
};

}  // namespace clary
