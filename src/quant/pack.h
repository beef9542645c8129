// Packing one block of up to 256 keys and values of one head.
//
// A key is first written as a row of bytes in its element type (its "image"), then 16 images at a time are transposed,
// so that a step of 4 bytes of 16 keys is one vector:
//
//   image of key i     [ s0 | s1 | s2 | ... ]           4 bytes per step
//   packed panel       [step][vector 0..3][lane 0..15]  key = the one at packed_position() = vector * 16 + lane
//   INT4               steps 2t and 2t+1 share a dword: low nibbles 2t, high nibbles 2t+1
//   matrix engine      images as they are, cut into tiles; keys of INT4 are INT8 codes of their 16 levels
//                      (kernel/tiles/layout.h)
//
//   values             [64-channel group][key step][vector][16 channels] of 4 bytes = 4 INT8 / 2 bf16 / 1 f32 keys,
//                      or 2 INT8 in words: keys first_key_of_word_step() and the next
//   in pairs (kInPairs)  steps 2t and 2t+1 of a lane side by side, in K and in V
//   matrix engine      transposed: [32 channels][16 steps of keys][2][16 channels][16 steps]
//
// Source of the smoothing and of the per-token scales: SageAttention2 (arXiv 2411.10958); of the asymmetric INT4 codes
// with a least-squares range: docs/performance.md.
#pragma once

#include <cmath>
#include <limits>

#include "core/arena.h"
#include "kernel/tiles/layout.h"
#include "quant/rows.h"

namespace clary {

template <class V, class S>
PackedSizes packed_sizes(int dim_qk, int dim_v) {
  PackedSizes sizes;
  sizes.tiles = kUsesTiles<V, S>;
  const bool nibbles = S::kQk == Element::i4 && !sizes.tiles;
  const int per_step = elements_per_step(S::kQk);
  const int align = sizes.tiles ? 16 : V::kLanes ? 4 : nibbles ? 2 : 1;
  sizes.key_steps = static_cast<int>(round_up((dim_qk + per_step - 1) / per_step, align));
  sizes.value_width = static_cast<int>(round_up(dim_v, sizes.tiles ? 32 : 16));
  sizes.key_block_bytes = int64_t{kBlockKeys} * sizes.key_steps * 4 / (nibbles ? 2 : 1);
  sizes.value_block_bytes = int64_t{kBlockKeys} * sizes.value_width * 4 / elements_per_step(S::kPv);
  sizes.key_scales = S::kIntegerQk;
  sizes.key_zeros = nibbles;
  sizes.value_scales = S::kIntegerPv;
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
    rows_ = arena.take<float>(kBlockKeys * row_floats(p.dim_qk, p.dim_v));
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
    arena.take<float>(kBlockKeys * row_floats(dim_qk, dim_v));
    return arena.used_bytes();
  }

 private:
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  static constexpr bool kTiles = kUsesTiles<V, S>;
  // Keys that share a scale.
  static constexpr int kScaleKeys = kTiles ? kTileScaleKeys : 1;

  static constexpr int64_t row_floats(int64_t dim_qk, int64_t dim_v) {
    return round_up(dim_qk > dim_v ? dim_qk : dim_v, 32);
  }

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
      const int end = keys_ - panel * kPanelKeys < kPanelKeys ? keys_ - panel * kPanelKeys : kPanelKeys;
      for (int i = 0; i < end; i += kScaleKeys) {
        const int count = end - i < kScaleKeys ? end - i : kScaleKeys;
        for (int k = 0; k < count; ++k) {
          const float norm = load_key(panel * kPanelKeys + i + k, k, width);
          largest_norm = norm > largest_norm ? norm : largest_norm;
        }
        write_images(panel * kPanelKeys + i, count, width, images_ + i * stride, stride);
      }
      kTiles ? copy_tiles(panel, stride) : transpose_panel(panel, stride);
    }
    head_.block_norm[a_.block] = largest_norm;
    if constexpr (kTiles) write_bias_words();
  }

  static constexpr int position_of(int key) {
    return key / kPanelKeys * kPanelKeys + packed_position<V, S>(key % kPanelKeys);
  }

  // One key into row `slot` of rows_, smoothed. Returns its norm.
  float load_key(int key, int slot, int width) {
    const Problem& p = *a_.problem;
    float* to = rows_ + slot * width;
    if (hidden(key)) {
      std::memset(to, 0, static_cast<size_t>(width) * 4);
      return 0;
    }
    if (Rows<V>::read_finite(row(a_.tensors->k, p.k, key), p.dtype, static_cast<int>(p.dim_qk), to))
      mark_nonfinite(key);
    return smooth_key(to, position_of(key), width);
  }

  // Keys that nobody sees are packed as zeros: what they hold must not widen the scales of their neighbours.
  bool hidden(int key) const { return a_.problem->hides_key(a_.sequence_index, a_.head_kv, first_key_ + key); }

  void mark_nonfinite(int key) {
    head_.nonfinite[first_key_ + key] = 1;
    head_.block_nonfinite[a_.block] = 1;
  }

  int64_t bias_count() const { return head_.key_bias_stride == 0 ? 1 : a_.problem->group; }

  // Zero where a key can be seen, -inf where it is padding or hidden by a mask that does not depend on the query;
  // and block_live.
  void fill_bias() {
    const float hidden = -std::numeric_limits<float>::infinity();
    for (int64_t g = 0; g < bias_count(); ++g) {
      float* bias = head_.key_bias + g * head_.key_bias_stride + first_key_;
      int count = 0;
      unsigned live = 0;
      for (int i = 0; i < kBlockKeys; ++i) {
        const bool shown = i < keys_ && (!a_.problem->folds_mask() ||
                                         a_.problem->mask_shows(a_.sequence_index, a_.head_kv * a_.problem->group + g,
                                                                0, first_key_ + i));
        bias[position_of(i)] = shown ? 0 : hidden;
        if (shown) ++count, live |= 1u << i / kPanelKeys;
      }
      if (count == keys_) live |= kAllLive;
      head_.block_live[g * head_.block_live_stride + a_.block] = static_cast<uint8_t>(live);
    }
  }

  // Hidden keys have no word: a block that has one goes another way.
  void write_bias_words() {
    using Words = TileWords<S>;
    const F32 scale = V::set(Words::kPerOctave), magic = V::set(kMagic);
    for (int64_t g = 0; g < bias_count(); ++g) {
      const float* bias = head_.key_bias + g * head_.key_bias_stride + first_key_;
      uint32_t* words = head_.bias_words + (g * head_.key_bias_stride + first_key_) / 2;
      for (int i = 0; i < kBlockKeys; i += 16) {
        alignas(64) uint32_t x[16];
        V::store_i32(x, V::as_i32(V::mul_add(V::load(bias + i), scale, magic)));
        for (int pair = 0; pair < 8; ++pair) {
          const int key = Words::first_key(pair);
          words[i / 2 + pair] = (x[key] & 0xffff) | x[key + Words::kPairDistance] << 16;
        }
      }
    }
  }

  // The key minus the mean of the keys; adds scale * (mean of the queries) . key to the bias. Returns the Euclidean
  // norm.
  float smooth_key(float* key, int position, int width) {
    F32 squares = V::zero();
    for (int c = 0; c < width; c += 16) {
      F32 x = V::load(key + c);
      if constexpr (S::kSmoothKeys) {
        x = V::sub(x, V::load(head_.key_mean + c));
        V::store(key + c, x);
      }
      squares = V::mul_add(x, x, squares);
    }
    if (head_.query_mean != nullptr) add_query_mean(key, position, width);
    return std::sqrt(V::reduce_add(squares));
  }

  void add_query_mean(const float* key, int position, int width) {
    const float unit = a_.problem->softmax_scale * kLog2e * S::kUnitsPerOctave;
    for (int64_t g = 0; g < a_.problem->group; ++g) {
      const float* mean = head_.query_mean + g * head_.query_mean_stride;
      F32 sum = V::zero();
      for (int c = 0; c < width; c += 16) sum = V::mul_add(V::load(key + c), V::load(mean + c), sum);
      head_.key_bias[g * head_.key_bias_stride + first_key_ + position] += unit * V::reduce_add(sum);
    }
  }

  // Images of the `count` keys in rows_, which share a scale if they have one.
  void write_images(int first_key, int count, int width, uint32_t* images, int64_t stride) {
    if constexpr (S::kQk == Element::i4) {
      for (int k = 0; k < count; ++k)
        round_to_int4(rows_ + k * width, position_of(first_key + k), width, images + k * stride);
      if constexpr (!kTiles) return;
    }
    float inverse_step = 0;
    if constexpr (S::kIntegerQk) {
      F32 largest = V::zero();
      for (int c = 0; c < count * width; c += 16) largest = V::max(largest, V::abs(V::load(rows_ + c)));
      const float top = V::reduce_max(largest);
      for (int k = 0; k < kScaleKeys; ++k)
        head_.key_scales[first_key_ + position_of(first_key + k)] = top * (1.0f / 127);
      inverse_step = top > 0 ? 127 / top : 0;
    }
    for (int k = 0; k < count; ++k) {
      const float* from = rows_ + k * width;
      uint32_t* image = images + k * stride;
      if constexpr (S::kQk == Element::f32) {
        std::memcpy(image, from, static_cast<size_t>(width) * 4);
      } else if constexpr (S::kQk == Element::bf16) {
        for (int c = 0; c < width; c += 16) V::store_bf16(reinterpret_cast<uint16_t*>(image) + c, V::load(from + c));
      } else {
        write_codes(from, width, inverse_step, image);
      }
    }
  }

  // Code c = round(key[c] * inverse_step); as a byte + 128, where it is the unsigned operand of its product.
  void write_codes(const float* key, int width, float inverse_step, uint32_t* image) {
    for (int c = 0; c < width; c += 16) {
      const I32 code = V::to_i32(V::mul(V::load(key + c), V::set(inverse_step)));
      if constexpr (S::kQk == Element::i8w) {
        V::store_words(reinterpret_cast<int16_t*>(image) + c, code);
      } else {
        V::store_i8(reinterpret_cast<uint8_t*>(image) + c,
                    kSignedKeys<V, S> ? code : V::add_i32(code, V::set_i32(128)));
      }
    }
  }

  // 16 levels between two ends; the ends are pulled inwards as long as the squared error falls. The padding channels
  // are zeros like the channels of a smoothed key on average, and meet zeros of Q: they may widen the range, never the
  // result. On tiles the key becomes its levels, otherwise the image their codes.
  void round_to_int4(float* key, int position, int width, uint32_t* image) {
    F32 top = V::load(key), bottom = top;
    for (int c = 16; c < width; c += 16) {
      top = V::max(top, V::load(key + c));
      bottom = V::min(bottom, V::load(key + c));
    }
    const float high = V::reduce_max(top), low = -V::reduce_max(V::sub(V::zero(), bottom));
    float best_error = std::numeric_limits<float>::infinity(), best_step = 0, best_low = low;
    for (int candidate = 0; candidate < kRangeCandidates; ++candidate) {
      const float cut = static_cast<float>(candidate) * kRangeStep * (high - low);
      const float candidate_low = low + cut, step = (high - low - 2 * cut) * (1.0f / 15);
      const float error = int4_error(key, width, candidate_low, step);
      if (error < best_error) best_error = error, best_step = step, best_low = candidate_low;
    }
    if constexpr (!kTiles) {
      head_.key_scales[first_key_ + position] = best_step;
      head_.key_zeros[first_key_ + position] = best_low;
    }
    const F32 inverse = V::set(best_step > 0 ? 1 / best_step : 0), offset = V::set(best_low);
    for (int c = 0; c < width; c += 16) {
      const F32 level = V::mul(V::sub(V::load(key + c), offset), inverse);
      const I32 code = V::to_i32(V::max(V::min(level, V::set(15)), V::zero()));
      if constexpr (kTiles) {
        V::store(key + c, V::mul_add(V::to_f32(code), V::set(best_step), offset));
      } else {
        V::store_i8(reinterpret_cast<uint8_t*>(image) + c, code);
      }
    }
  }

  // Seven ranges, each 2.5 % narrower at both ends than the one before: beyond 15 % nothing was ever gained.
  static constexpr int kRangeCandidates = 7;
  static constexpr float kRangeStep = 0.025f;

  static float int4_error(const float* key, int width, float low, float step) {
    const F32 inverse = V::set(step > 0 ? 1 / step : 0), offset = V::set(low), size = V::set(step);
    F32 error = V::zero();
    for (int c = 0; c < width; c += 16) {
      const F32 x = V::load(key + c);
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

  // Images of a panel as 4 key tiles of whole chunks.
  void copy_tiles(int panel, int64_t stride) {
    const int chunks = sizes_.key_steps / 16;
    auto* to = reinterpret_cast<uint32_t*>(head_.keys + a_.block * sizes_.key_block_bytes) +
               int64_t{panel} * kPanelKeys * sizes_.key_steps;
    for (int key = 0; key < kPanelKeys; ++key)
      for (int chunk = 0; chunk < chunks; ++chunk)
        V::store_i32(to + (key / 16 * chunks + chunk) * kTileDwords + key % 16 * 16,
                     V::load_i32(images_ + key * stride + chunk * 16));
  }

  static constexpr int key_at(int vector, int lane) {
    return kByQuads<V, S> ? 16 * (lane / 4) + 4 * vector + lane % 4 : 16 * vector + lane;
  }

  void store_steps(I32 (&x)[16], uint32_t* to, int step) {
    if constexpr (kInPairs<V, S::kQk>)
      for (int s = 0; s < 16; s += 2) V::interleave(x[s], x[s + 1]);
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
        for (int c = 0; c < p.dim_v; c += 16) V::store(to + c, V::sub(V::load(to + c), V::load(head_.value_mean + c)));
      if (width > round_up(p.dim_v, 16)) V::store(to + width - 16, V::zero());
    }
    std::memset(rows_ + keys_ * width, 0, static_cast<size_t>(padded - keys_) * width * 4);
    for (int c = 0; c < width; c += 16) kTiles ? pack_value_tiles(c, padded) : pack_channels(c, padded);
  }

  // 16 channels of all keys of the block, as tiles of 16 steps of keys.
  void pack_value_tiles(int channel, int padded_keys) {
    constexpr int kTileKeys = 16 * elements_per_step(S::kPv);
    auto* to = reinterpret_cast<uint32_t*>(head_.values + a_.block * sizes_.value_block_bytes) +
               int64_t{channel / 32 * (kBlockKeys / kTileKeys) * 2 + channel / 16 % 2} * kTileDwords;
    F32 inverse = V::set(1);
    if constexpr (S::kIntegerPv) inverse = value_scale(channel, padded_keys);
    for (int key = 0; key < padded_keys; key += kTileKeys, to += 2 * kTileDwords) {
      I32 x[16];
      for (int step = 0; step < 16; ++step)
        x[step] = value_word(rows_ + key * sizes_.value_width + channel, step, inverse);
      V::transpose16(x);
      for (int c = 0; c < 16; ++c) V::store_i32(to + c * 16, x[c]);
    }
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
    if constexpr (S::kIntegerPv) inverse = value_scale(channel, padded_keys);
    const auto store = [&](int step, I32 word) { V::store_i32(to + int64_t{step} * vectors * 16, word); };
    if constexpr (kInPairs<V, S::kPv>) {
      for (int step = 0; step * kPerStep < padded_keys; step += 2) {
        I32 x = value_word(from, step, inverse), y = value_word(from, step + 1, inverse);
        V::interleave(x, y);
        store(step, x), store(step + 1, y);
      }
    } else {
      for (int step = 0; step * kPerStep < padded_keys; ++step) store(step, value_word(from, step, inverse));
    }
  }

  // One step of 16 channels: 4 bytes each, of one key after the other.
  I32 value_word(const float* from, int step, F32 inverse) const {
    const int width = sizes_.value_width;
    const float* x = from + step * elements_per_step(S::kPv) * width;
    if constexpr (S::kPv == Element::f32) {
      return V::as_i32(V::load(x));
    } else if constexpr (S::kPv == Element::bf16) {
      return bf16_pair(x, width);
    } else if constexpr (S::kPv == Element::i8w) {
      const float* y = from + first_key_of_word_step(step) * width;
      return V::or_i32(V::and_i32(to_code(y, inverse), V::set_i32(0xffff)),
                       V::template shift_left<16>(to_code(y + width, inverse)));
    } else {
      return V::or_i32(V::or_i32(code(x, inverse), V::template shift_left<8>(code(x + width, inverse))),
                       V::or_i32(V::template shift_left<16>(code(x + 2 * width, inverse)),
                                 V::template shift_left<24>(code(x + 3 * width, inverse))));
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

  // 16 channels of two keys, `width` floats apart.
  static I32 bf16_pair(const float* x, int width) {
    const I32 high_half = V::set_i32(static_cast<int32_t>(0xffff0000u));
    return V::or_i32(V::template shift_right<16>(round_bf16(V::load(x))),
                     V::and_i32(round_bf16(V::load(x + width)), high_half));
  }

  static I32 to_code(const float* x, F32 inverse) { return V::to_i32(V::mul(V::load(x), inverse)); }
  static I32 code(const float* x, F32 inverse) {
    const I32 c = to_code(x, inverse);
    return V::and_i32(V::kUnsignedValues ? V::add_i32(c, V::set_i32(128)) : c, V::set_i32(255));
  }

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
