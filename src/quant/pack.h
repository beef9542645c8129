// Packing one block of up to 256 keys and values of one head.
//
// A key is first written as a row of bytes in its element type (its "image"), then 16 images at a time are transposed,
// so that a step of 4 bytes of 16 keys is one vector:
//
//   image of key i     [ s0 | s1 | s2 | ... ]           4 bytes per step
//   packed panel       [step][vector 0..3][lane 0..15]  key = the one at packed_position() = vector * 16 + lane
//   INT4               steps 2t and 2t+1 share a dword: low nibbles 2t, high nibbles 2t+1
//
//   values             [64-channel group][key step][vector][16 channels] of 4 bytes = 4 INT8 / 2 bf16 / 1 f32 keys,
//                      or 2 INT8 in words: keys first_key_of_word_step() and the next
//
// Source of the smoothing and of the per-token scales: SageAttention2 (arXiv 2411.10958); of the asymmetric INT4 codes
// with a least-squares range: docs/performance.md.
#pragma once

#include <cmath>
#include <limits>

#include "core/arena.h"
#include "kernel/scheme.h"
#include "quant/rows.h"

namespace clary {

template <class V, class S>
PackedSizes packed_sizes(int dim_qk, int dim_v) {
  PackedSizes sizes;
  const int align = S::kQk == Element::i4 && V::kStepAlign < 2 ? 2 : V::kStepAlign;
  const int per_step = elements_per_step(S::kQk);
  sizes.key_steps = static_cast<int>(round_up((dim_qk + per_step - 1) / per_step, S::kQk == Element::f32 ? 1 : align));
  sizes.value_width = static_cast<int>(round_up(dim_v, 16));
  sizes.key_block_bytes = int64_t{kBlockKeys} * sizes.key_steps * 4 / (S::kQk == Element::i4 ? 2 : 1);
  sizes.value_block_bytes = int64_t{kBlockKeys} * sizes.value_width * 4 / elements_per_step(S::kPv);
  sizes.key_scales = S::kIntegerQk;
  sizes.key_zeros = S::kQk == Element::i4;
  sizes.value_scales = S::kFixedPoint;
  sizes.centred_values = S::kCentreValues;
  return sizes;
}

// Dwords between the images of two keys: whole transposes of 16 steps, and room for whole vectors of channels.
constexpr int64_t image_stride(int key_steps, int dim_qk) {
  return round_up(key_steps > round_up(dim_qk, 16) ? key_steps : round_up(dim_qk, 16), 16);
}

template <class V, class S>
class Packer {
 public:
  explicit Packer(const PackArgs& args) : a_(args), sizes_(*args.sizes), head_(*args.head) {
    Arena arena(args.scratch);
    const Problem& p = *a_.problem;
    images_ = arena.take<uint32_t>(kPanelKeys * image_stride(sizes_.key_steps, static_cast<int>(p.dim_qk)));
    rows_ = arena.take<float>(kBlockKeys * round_up(p.dim_qk > p.dim_v ? p.dim_qk : p.dim_v, 16));
    first_key_ = a_.block * kBlockKeys;
    const int64_t left = a_.sequence.len_k - first_key_;
    keys_ = static_cast<int>(left < kBlockKeys ? left : kBlockKeys);
  }

  void run() {
    pack_keys();
    pack_values();
  }

  static size_t scratch_bytes(int dim_qk, int dim_v) {
    Arena arena;
    arena.take<uint32_t>(kPanelKeys * image_stride(static_cast<int>(round_up(dim_qk, 16)), dim_qk));
    arena.take<float>(kBlockKeys * round_up(dim_qk > dim_v ? dim_qk : dim_v, 16));
    return arena.used_bytes();
  }

 private:
  using F32 = typename V::F32;
  using I32 = typename V::I32;

  const void* row(const void* base, const Strides& strides, int64_t key) const {
    const int64_t index = a_.sequence.batch * strides.batch + a_.head_kv * strides.head +
                          (a_.sequence.k_begin + first_key_ + key) * strides.row;
    return static_cast<const char*>(base) + index * size_bytes(a_.problem->dtype);
  }

  void pack_keys() {
    const Problem& p = *a_.problem;
    const int width = static_cast<int>(round_up(p.dim_qk, 16));
    const int64_t stride = image_stride(sizes_.key_steps, static_cast<int>(p.dim_qk));
    std::memset(head_.nonfinite + first_key_, 0, kBlockKeys);
    head_.block_nonfinite[a_.block] = 0;
    // Padding keys are multiplied too: their scores must be finite before the bias makes them -inf.
    if (sizes_.key_scales) std::memset(head_.key_scales + first_key_, 0, kBlockKeys * sizeof(float));
    if (sizes_.key_zeros) std::memset(head_.key_zeros + first_key_, 0, kBlockKeys * sizeof(float));
    fill_bias();
    float largest_norm = 0;
    for (int panel = 0; panel * kPanelKeys < keys_; ++panel) {
      std::memset(images_, 0, static_cast<size_t>(kPanelKeys * stride) * 4);
      for (int i = 0; i < kPanelKeys && panel * kPanelKeys + i < keys_; ++i) {
        const int key = panel * kPanelKeys + i;
        const int position = panel * kPanelKeys + packed_position<S>(i);
        if (hidden(key)) {
          std::memset(rows_, 0, static_cast<size_t>(width) * 4);
        } else {
          if (Rows<V>::read_finite(row(a_.tensors->k, p.k, key), p.dtype, static_cast<int>(p.dim_qk), rows_))
            mark_nonfinite(key);
          const float norm = smooth_key(position, width);
          largest_norm = norm > largest_norm ? norm : largest_norm;
        }
        write_image(position, width, images_ + i * stride);
      }
      transpose_panel(panel, stride);
    }
    head_.block_norm[a_.block] = largest_norm;
    mark_live();
  }

  // Keys that nobody sees are packed as zeros: what they hold must not widen the scales of their neighbours.
  bool hidden(int key) const { return a_.problem->hides_key(a_.sequence_index, a_.head_kv, first_key_ + key); }

  void mark_nonfinite(int key) {
    head_.nonfinite[first_key_ + key] = 1;
    head_.block_nonfinite[a_.block] = 1;
  }

  int64_t bias_count() const { return head_.key_bias_stride == 0 ? 1 : a_.problem->group; }

  // Zero where a key can be seen, -inf where it is padding or hidden by a mask that does not depend on the query.
  void fill_bias() {
    const float hidden = -std::numeric_limits<float>::infinity();
    for (int64_t g = 0; g < bias_count(); ++g) {
      float* bias = head_.key_bias + g * head_.key_bias_stride + first_key_;
      for (int i = 0; i < kBlockKeys; ++i) {
        const int64_t at = i / kPanelKeys * kPanelKeys + packed_position<S>(i % kPanelKeys);
        const bool shown = i < keys_ && (!a_.problem->folds_mask() ||
                                         a_.problem->mask_shows(a_.sequence_index, a_.head_kv * a_.problem->group + g,
                                                                0, first_key_ + i));
        bias[at] = shown ? 0 : hidden;
      }
    }
  }

  void mark_live() {
    for (int64_t g = 0; g < bias_count(); ++g) {
      const float* bias = head_.key_bias + g * head_.key_bias_stride + first_key_;
      F32 largest = V::load(bias);
      for (int i = 16; i < kBlockKeys; i += 16) largest = V::max(largest, V::load(bias + i));
      const bool live = V::reduce_max(largest) > -std::numeric_limits<float>::infinity();
      head_.block_live[g * head_.block_live_stride + a_.block] = live ? 1 : 0;
    }
  }

  // rows_ minus the mean of the keys; adds scale * (mean of the queries) . key to the bias. Returns the Euclidean norm.
  float smooth_key(int position, int width) {
    F32 squares = V::zero();
    for (int c = 0; c < width; c += 16) {
      F32 x = V::load(rows_ + c);
      if constexpr (S::kSmoothKeys) {
        x = V::sub(x, V::load(head_.key_mean + c));
        V::store(rows_ + c, x);
      }
      squares = V::mul_add(x, x, squares);
    }
    if (head_.query_mean != nullptr) add_query_mean(position, width);
    return std::sqrt(V::reduce_add(squares));
  }

  void add_query_mean(int position, int width) {
    const float unit = a_.problem->softmax_scale * kLog2e * S::kUnitsPerOctave;
    for (int64_t g = 0; g < a_.problem->group; ++g) {
      const float* mean = head_.query_mean + g * head_.query_mean_stride;
      F32 sum = V::zero();
      for (int c = 0; c < width; c += 16) sum = V::mul_add(V::load(rows_ + c), V::load(mean + c), sum);
      head_.key_bias[g * head_.key_bias_stride + first_key_ + position] += unit * V::reduce_add(sum);
    }
  }

  void write_image(int position, int width, uint32_t* image) {
    if constexpr (S::kQk == Element::f32) {
      std::memcpy(image, rows_, static_cast<size_t>(width) * 4);
    } else if constexpr (S::kQk == Element::bf16) {
      for (int c = 0; c < width; c += 16) V::store_bf16(reinterpret_cast<uint16_t*>(image) + c, V::load(rows_ + c));
    } else if constexpr (S::kQk == Element::i8 || S::kQk == Element::i8w) {
      F32 largest = V::zero();
      for (int c = 0; c < width; c += 16) largest = V::max(largest, V::abs(V::load(rows_ + c)));
      const float top = V::reduce_max(largest);
      head_.key_scales[first_key_ + position] = top * (1.0f / 127);
      write_codes(width, top > 0 ? 127 / top : 0, image);
    } else {
      write_int4(position, width, image);
    }
  }

  // Code c = round(rows_[c] * inverse_step), + 128 as a byte: the unsigned operand of its product.
  void write_codes(int width, float inverse_step, uint32_t* image) {
    for (int c = 0; c < width; c += 16) {
      const I32 code = V::to_i32(V::mul(V::load(rows_ + c), V::set(inverse_step)));
      if constexpr (S::kQk == Element::i8w) {
        V::store_words(reinterpret_cast<int16_t*>(image) + c, code);
      } else {
        V::store_i8(reinterpret_cast<uint8_t*>(image) + c, V::add_i32(code, V::set_i32(128)));
      }
    }
  }

  // 16 levels between two ends; the ends are pulled inwards as long as the squared error falls. The padding channels
  // are zeros like the channels of a smoothed key on average, and meet zeros of Q: they may widen the range, never the
  // result.
  void write_int4(int position, int width, uint32_t* image) {
    F32 top = V::load(rows_), bottom = top;
    for (int c = 16; c < width; c += 16) {
      top = V::max(top, V::load(rows_ + c));
      bottom = V::min(bottom, V::load(rows_ + c));
    }
    const float high = V::reduce_max(top), low = -V::reduce_max(V::sub(V::zero(), bottom));
    float best_error = std::numeric_limits<float>::infinity(), best_step = 0, best_low = low;
    for (int candidate = 0; candidate < kRangeCandidates; ++candidate) {
      const float cut = static_cast<float>(candidate) * kRangeStep * (high - low);
      const float candidate_low = low + cut, step = (high - low - 2 * cut) * (1.0f / 15);
      const float error = int4_error(width, candidate_low, step);
      if (error < best_error) best_error = error, best_step = step, best_low = candidate_low;
    }
    head_.key_scales[first_key_ + position] = best_step;
    head_.key_zeros[first_key_ + position] = best_low;
    const F32 inverse = V::set(best_step > 0 ? 1 / best_step : 0), offset = V::set(best_low);
    for (int c = 0; c < width; c += 16) {
      const F32 code = V::mul(V::sub(V::load(rows_ + c), offset), inverse);
      V::store_i8(reinterpret_cast<uint8_t*>(image) + c, V::to_i32(V::max(V::min(code, V::set(15)), V::zero())));
    }
  }

  // Seven ranges, each 2.5 % narrower at both ends than the one before: beyond 15 % nothing was ever gained.
  static constexpr int kRangeCandidates = 7;
  static constexpr float kRangeStep = 0.025f;

  float int4_error(int width, float low, float step) {
    const F32 inverse = V::set(step > 0 ? 1 / step : 0), offset = V::set(low), size = V::set(step);
    F32 error = V::zero();
    for (int c = 0; c < width; c += 16) {
      const F32 x = V::load(rows_ + c);
      const F32 code = V::max(V::min(V::mul(V::sub(x, offset), inverse), V::set(15)), V::zero());
      const F32 miss = V::sub(V::mul_add(V::to_f32(V::to_i32(code)), size, offset), x);
      error = V::mul_add(miss, miss, error);
    }
    return V::reduce_add(error);
  }

  void transpose_panel(int panel, int64_t stride) {
    const int stored_steps = S::kQk == Element::i4 ? sizes_.key_steps / 2 : sizes_.key_steps;
    auto* to = reinterpret_cast<uint32_t*>(head_.keys + a_.block * sizes_.key_block_bytes) +
               int64_t{panel} * stored_steps * kPanelKeys;
    for (int vector = 0; vector < 4; ++vector) {
      for (int step = 0; step < sizes_.key_steps; step += 16) {
        I32 x[16];
        for (int lane = 0; lane < 16; ++lane) x[lane] = V::load_i32(images_ + key_at(vector, lane) * stride + step);
        V::transpose16(x);
        store_steps(x, to + vector * 16, step);
      }
    }
  }

  static constexpr int key_at(int vector, int lane) {
    return S::kFixedPoint ? 16 * (lane / 4) + 4 * vector + lane % 4 : 16 * vector + lane;
  }

  void store_steps(const I32 (&x)[16], uint32_t* to, int step) {
    const int count = sizes_.key_steps - step < 16 ? sizes_.key_steps - step : 16;
    if constexpr (S::kQk == Element::i4) {
      for (int s = 0; s < count; s += 2)
        V::store_i32(to + (step + s) / 2 * kPanelKeys, V::or_i32(x[s], V::template shift_left<4>(x[s + 1])));
    } else {
      for (int s = 0; s < count; ++s) V::store_i32(to + (step + s) * kPanelKeys, x[s]);
    }
  }

  void pack_values() {
    const Problem& p = *a_.problem;
    const int width = sizes_.value_width, padded = static_cast<int>(round_up(keys_, kPanelKeys));
    for (int key = 0; key < keys_; ++key) {
      float* to = rows_ + key * width;
      if (hidden(key)) {
        std::memset(to, 0, static_cast<size_t>(width) * 4);
        continue;
      }
      if (Rows<V>::read_finite(row(a_.tensors->v, p.v, key), p.dtype, static_cast<int>(p.dim_v), to))
        mark_nonfinite(key);
      if constexpr (S::kCentreValues)
        for (int c = 0; c < width; c += 16) V::store(to + c, V::sub(V::load(to + c), V::load(head_.value_mean + c)));
    }
    std::memset(rows_ + keys_ * width, 0, static_cast<size_t>(padded - keys_) * width * 4);
    for (int c = 0; c < width; c += 16) pack_channels(c, padded);
  }

  // 16 channels of all keys of the block.
  void pack_channels(int channel, int padded_keys) {
    const int width = sizes_.value_width, group = channel / kGroupChannels, first = group * kGroupChannels;
    const int vectors = width - first < kGroupChannels ? (width - first) / 16 : 4;
    constexpr int kPerStep = elements_per_step(S::kPv);
    auto* to = reinterpret_cast<uint32_t*>(head_.values + a_.block * sizes_.value_block_bytes) +
               int64_t{first} * (kBlockKeys / kPerStep) + (channel - first);
    const float* from = rows_ + channel;
    F32 inverse = V::set(1);
    if constexpr (S::kFixedPoint) inverse = value_scale(channel, padded_keys);
    for (int step = 0; step * kPerStep < padded_keys; ++step) {
      const float* x = from + step * kPerStep * width;
      I32 word;
      if constexpr (S::kPv == Element::f32) {
        word = V::as_i32(V::load(x));
      } else if constexpr (S::kPv == Element::bf16) {
        const I32 high_half = V::set_i32(static_cast<int32_t>(0xffff0000u));
        word = V::or_i32(V::template shift_right<16>(round_bf16(V::load(x))),
                         V::and_i32(round_bf16(V::load(x + width)), high_half));
      } else if constexpr (S::kPv == Element::i8w) {
        const float* y = from + first_key_of_word_step(step) * width;
        word = V::or_i32(V::and_i32(to_code(y, inverse), V::set_i32(0xffff)),
                         V::template shift_left<16>(to_code(y + width, inverse)));
      } else {
        word = V::or_i32(V::or_i32(code(x, inverse), V::template shift_left<8>(code(x + width, inverse))),
                         V::or_i32(V::template shift_left<16>(code(x + 2 * width, inverse)),
                                   V::template shift_left<24>(code(x + 3 * width, inverse))));
      }
      V::store_i32(to + int64_t{step} * vectors * 16, word);
    }
  }

  // Sets the scale of 16 channels of this block (with the 1/255 of P); returns the inverse of the scale of V alone.
  F32 value_scale(int channel, int keys) {
    F32 largest = V::zero();
    for (int key = 0; key < keys; ++key)
      largest = V::max(largest, V::abs(V::load(rows_ + key * sizes_.value_width + channel)));
    V::store(head_.value_scales + a_.block * sizes_.value_width + channel, V::mul(largest, V::set(1.0f / (127 * 255))));
    // A constant channel is zero after centring, up to rounding: any finite inverse gives code 0 or a faithful one.
    constexpr float kSmallest = 1e-30f;
    return V::div(V::set(127), V::max(largest, V::set(kSmallest)));
  }

  static I32 to_code(const float* x, F32 inverse) { return V::to_i32(V::mul(V::load(x), inverse)); }
  static I32 code(const float* x, F32 inverse) { return V::and_i32(to_code(x, inverse), V::set_i32(255)); }

  // Bits of x rounded to bf16 (nearest even) in the upper half; the lower half is garbage.
  static I32 round_bf16(F32 x) {
    const I32 bits = V::as_i32(x);
    const I32 odd = V::and_i32(V::template shift_right<16>(bits), V::set_i32(1));
    return V::add_i32(V::add_i32(bits, V::set_i32(0x7fff)), odd);
  }

  const PackArgs& a_;
  const PackedSizes& sizes_;
  const PackedHead& head_;
  uint32_t* images_ = nullptr;
  float* rows_ = nullptr;
  int64_t first_key_ = 0;
  int keys_ = 0;
};

}  // namespace clary
