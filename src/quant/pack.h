// Packing one block of up to 256 keys and values of one head.
//
// The 16 keys of a packed vector are read together and smoothed, and what is asked of each (norm, largest element,
// product with the mean of the queries) is reduced over lanes for all of them at once. Then they are written as rows of
// bytes in their element type ("images"), which are transposed, so that a step of 4 bytes of 16 keys is one vector:
//
//   image of key i     [ s0 | s1 | s2 | ... ]           4 bytes per step
//   packed panel       [step][vector 0..3][lane 0..15]  key = the one at packed_position() = vector * 16 + lane
//   INT4               steps 2t and 2t+1 share a dword: low nibbles 2t, high nibbles 2t+1
//   matrix engine      images as they are, cut into tiles; keys of INT4 are INT8 codes of their 16 levels
//                      (kernel/tiles/layout.h)
//
//   values             [64-channel group][key step][vector][16 channels] of 4 bytes = 4 INT8 / 2 INT8 in words /
//                      2 bf16 / 1 f32 keys
//   in pairs (kInPairs)  steps 2t and 2t+1 of a lane side by side, in K and in V
//   matrix engine      transposed: [32 channels][16 steps of keys][2][16 channels][16 steps]
//
// Source of the smoothing and of the per-token scales: SageAttention2 (arXiv 2411.10958); of the asymmetric INT4 codes
// with a least-squares range: docs/performance.md.
#pragma once

#include <cmath>
#include <limits>

#include "kernel/tiles/layout.h"
#include "quant/values.h"

namespace clary {

template <class V, class S>
PackedSizes packed_sizes(int dim_qk, int dim_v) {
  PackedSizes sizes;
  sizes.tiles = kUsesTiles<V, S>;
  const bool nibbles = S::kQk == Element::i4 && !sizes.tiles;
  const int per_step = elements_per_step(S::kQk);
  const int align = S::kSplit ? 32 : sizes.tiles ? 16 : V::kLanes ? 4 : nibbles ? 2 : 1;
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

template <class V, class S>
class Packer : BlockPacker<V, S> {
 public:
  explicit Packer(const PackArgs& args) : Base(args) {
    Arena arena(args.scratch);
    scratch_ = lay_out(arena, a_.problem->dim_qk, a_.problem->dim_v);
    width_ = static_cast<int>(round_up(a_.problem->dim_qk, 16));
    image_stride_ = static_cast<int>(round_up(sizes_.key_steps, 16));
  }

  void run() {
    pack_keys();
    ValuePacker<V, S>(*this, scratch_.inverse, scratch_.rows).run();
  }

  static size_t scratch_bytes(int dim_qk, int dim_v) {
    Arena arena;
    lay_out(arena, dim_qk, dim_v);
    return arena.used_bytes();
  }

 private:
  using Base = BlockPacker<V, S>;
  using Base::a_, Base::sizes_, Base::head_, Base::first_key_, Base::keys_, Base::hidden_;
  using Base::has, Base::row, Base::mark_nonfinite;
  using typename Base::F32, typename Base::I32;
  static constexpr bool kTiles = kUsesTiles<V, S>;
  // Packed vectors whose keys are rounded together: on tiles, those that share a scale.
  static constexpr int kVectors = kTiles ? kTileScaleKeys / 16 : 1;
  static constexpr int kTogether = kVectors * 16;
  // INT8 is scaled by the largest element; INT4 looks for its range itself.
  static constexpr bool kBytes = S::kQk == Element::i8 || S::kQk == Element::i8w;

  struct Scratch {
    uint32_t* images;  // [kTogether][image_stride_]
    float* rows;       // [kTogether][width_]; values of tiles: [256][value_width]
    float* inverse;    // [value_width]
  };
  static Scratch lay_out(Arena& arena, int64_t dim_qk, int64_t dim_v) {
    return {arena.take<uint32_t>(kTileScaleKeys * round_up(dim_qk, 32)),
            arena.take<float>(kBlockKeys * round_up(dim_qk > dim_v ? dim_qk : dim_v, 32)),
            arena.take<float>(round_up(dim_v, 32))};
  }

  void pack_keys() {
    std::memset(head_.nonfinite + first_key_, 0, kBlockKeys);
    head_.block_nonfinite[a_.block] = 0;
    fill_bias();
    // Steps that whole vectors of channels do not reach are zeros.
    if (width_ != image_stride_ * elements_per_step(S::kQk))
      std::memset(scratch_.images, 0, static_cast<size_t>(kTogether * image_stride_) * 4);
    F32 squares = V::zero();
    for (int panel = 0; panel * kPanelKeys < keys_; ++panel)
      for (int vector = 0; vector < 4; vector += kVectors) squares = V::max(squares, pack_vectors(panel, vector));
    head_.block_norm[a_.block] = std::sqrt(V::reduce_max(squares));
    if constexpr (kTiles && S::kIntegerQk) write_bias_words();
  }

  // Packs kVectors vectors; returns the largest squares of their norms.
  F32 pack_vectors(int panel, int vector) {
    F32 squares = V::zero(), top = V::zero();
    for (int v = 0; v < kVectors; ++v) {
      rows_of_keys_ = scratch_.rows + v * 16 * width_;
      read_keys(panel, vector + v);
      squares = V::max(squares, V::reduce_add16(squares_));
      if constexpr (kBytes) top = V::max(top, V::reduce_max16(tops_));
      if (head_.query_mean != nullptr) add_query_means(position(panel, vector + v));
    }
    write_images(position(panel, vector), top);
    for (int v = 0; v < kVectors; ++v) {
      const uint32_t* images =
          S::kQk == Element::f32 ? reinterpret_cast<const uint32_t*>(scratch_.rows) : scratch_.images;
      images += v * 16 * image_stride_;
      kTiles ? copy_tiles(panel, vector + v, images) : transpose(panel, vector, images);
    }
    return squares;
  }

  static constexpr int position(int panel, int vector) { return panel * kPanelKeys + vector * 16; }
  static constexpr int position_of(int key) {
    return key / kPanelKeys * kPanelKeys + packed_position<V, S>(key % kPanelKeys);
  }
  static constexpr int key_at(int vector, int lane) {
    return kByQuads<V, S> ? 32 * (vector / 2) + 8 * (lane / 4) + 4 * (vector % 2) + lane % 4 : 16 * vector + lane;
  }

  // The keys of a packed vector as rows of floats, smoothed, zeros where there is no key; squares_ and tops_ of each.
  void read_keys(int panel, int vector) {
    with_dtype(a_.problem->dtype, [&](auto dtype) {
      this->template read_keys<dtype>(panel, vector, false);
      // A sum over anything non-finite is not finite either.
      if (!Rows<V>::is_finite(V::reduce_add16(squares_))) this->template read_keys<dtype>(panel, vector, true);
    });
  }

  template <DType T>
  void read_keys(int panel, int vector, bool look_for_nonfinite) {
    for (int lane = 0; lane < 16; ++lane) {
      const int key = panel * kPanelKeys + key_at(vector, lane), dim = static_cast<int>(a_.problem->dim_qk);
      float* to = rows_of_keys_ + lane * width_;
      if (!has(key)) {
        std::memset(to, 0, static_cast<size_t>(width_) * 4);
        squares_[lane] = tops_[lane] = V::zero();
        continue;
      }
      const void* from = row(a_.tensors->k, a_.problem->k, key);
      if (look_for_nonfinite) {
        if (Rows<V>::read_finite(from, T, dim, to)) mark_nonfinite(key);
        smooth_key<DType::f32>(to, to, lane);
      } else {
        smooth_key<T>(from, to, lane);
      }
    }
  }

  // The key minus the mean of the keys.
  template <DType T>
  [[gnu::always_inline]] void smooth_key(const void* from, float* to, int lane) {
    const int dim = static_cast<int>(a_.problem->dim_qk);
    const float* const mean = head_.key_mean;
    F32 squares = V::zero(), top = V::zero();
    Rows<V>::for_vectors(
        from, T, dim, [&](F32 x, int c) __attribute__((always_inline)) {
          if constexpr (S::kSmoothKeys) x = V::sub(x, V::load(mean + c));
          V::store(to + c, x);
          squares = V::mul_add(x, x, squares);
          if constexpr (kBytes) top = V::max(top, V::abs(x));
        });
    squares_[lane] = squares, tops_[lane] = top;
  }

  // Adds scale * (mean of the queries) . key to the bias.
  void add_query_means(int position) {
    const float unit = a_.problem->softmax_scale * kLog2e * S::kUnitsPerOctave;
    const int width = width_;
    const float* const rows = rows_of_keys_;
    for (int64_t g = 0; g < a_.problem->group; ++g) {
      const float* mean = head_.query_mean + g * head_.query_mean_stride;
      F32 products[16];
      for (int lane = 0; lane < 16; ++lane) {
        F32 sum = V::zero();
        for (int c = 0; c < width; c += 16) sum = V::mul_add(V::load(rows + lane * width + c), V::load(mean + c), sum);
        products[lane] = sum;
      }
      float* bias = head_.key_bias + g * head_.key_bias_stride + first_key_ + position;
      V::store(bias, V::add(V::load(bias), V::mul(V::set(unit), V::reduce_add16(products))));
    }
  }

  int64_t bias_count() const { return head_.key_bias_stride == 0 ? 1 : a_.problem->group; }

  // Zero where a key can be seen, -inf where it is padding or hidden by a mask that does not depend on the query;
  // and block_live.
  void fill_bias() {
    const float hidden = -std::numeric_limits<float>::infinity();
    const bool folds = a_.problem->folds_mask(), each_head = a_.problem->mask.head != 0 && a_.problem->group > 1;
    for (int64_t g = 0; g < bias_count(); ++g) {
      float* bias = head_.key_bias + g * head_.key_bias_stride + first_key_;
      const int64_t head = a_.head_kv * a_.problem->group + g;
      BlockLive live;
      for (int first = 0; first < kBlockKeys; first += kPanelKeys) {
        fill_panel_bias(bias, first, live, [&](int key) {
          if (key >= keys_) return hidden;
          if (!folds) return 0.0f;
          const bool shows =
              each_head ? a_.problem->mask_shows(a_.sequence_index, head, 0, first_key_ + key) : !hidden_[key];
          return shows ? 0 : hidden;
        });
      }
      head_.block_live[g * head_.block_live_stride + a_.block] = live;
    }
  }

  template <class Bias>
  void fill_panel_bias(float* bias, int first, BlockLive& live, Bias&& bias_of) const {
    const bool exists = first + kPanelKeys <= keys_;
    const auto show = [&](int key) {
      live.panels = static_cast<uint8_t>(live.panels | 1u << first / kPanelKeys);
      live.end = static_cast<uint16_t>(key + 1);
    };
    if (first >= keys_ || (exists && !a_.problem->folds_mask())) {
      for (int i = 0; i < kPanelKeys; i += 16) V::store(bias + first + i, V::set(bias_of(first)));
      if (exists) show(first + kPanelKeys - 1);
      return;
    }
    for (int key = first; key < first + kPanelKeys; ++key) {
      const float x = bias_of(key);
      bias[position_of(key)] = x;
      if (x == 0) {
        show(key);
      } else if (key < keys_) {
        live.all = false;
      }
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

  // Images of the kTogether keys in scratch_.rows, the first of which is packed at `position`. top: largest magnitude
  // of each.
  void write_images(int position, F32 top) {
    alignas(64) float inverse_step[16];
    if constexpr (S::kQk == Element::i4) {
      for (int k = 0; k < kTogether; ++k)
        round_to_int4(scratch_.rows + k * width_, position + k, scratch_.images + k * image_stride_);
      if constexpr (kTiles) top = largest_of_levels();
    }
    if constexpr (kBytes || (kTiles && S::kQk == Element::i4)) {
      if constexpr (kTiles) top = V::set(V::reduce_max(top));
      for (int v = 0; v < kVectors; ++v)
        V::store(head_.key_scales + first_key_ + position + v * 16, V::mul(top, V::set(1.0f / 127)));
      V::store(inverse_step, V::select_less(V::zero(), top, V::div(V::set(127), top), V::zero()));
    }
    for (int k = 0; k < kTogether; ++k) {
      const float* from = scratch_.rows + k * width_;
      uint32_t* image = scratch_.images + k * image_stride_;
      if constexpr (S::kQk == Element::bf16) {
        for (int c = 0; c < width_; c += 16) V::store_bf16(reinterpret_cast<uint16_t*>(image) + c, V::load(from + c));
      } else if constexpr (S::kSplit) {
        auto* high = reinterpret_cast<uint16_t*>(image);
        for (int c = 0; c < width_; c += 16) store_split<V>(high + c, high + sizes_.key_steps + c, V::load(from + c));
      } else if constexpr (kBytes || (kTiles && S::kQk == Element::i4)) {
        write_codes(from, inverse_step[k % 16], image);
      }
    }
  }

  // Of the keys in scratch_.rows, once they are rounded to 4 bits.
  F32 largest_of_levels() const {
    F32 largest = V::zero();
    for (int c = 0; c < kTogether * width_; c += 16) largest = V::max(largest, V::abs(V::load(scratch_.rows + c)));
    return largest;
  }

  // Code c = round(key[c] * inverse_step); as a byte + 128, where it is the unsigned operand of its product.
  void write_codes(const float* key, float inverse_step, uint32_t* image) {
    for (int c = 0, width = width_; c < width; c += 16) {
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
  void round_to_int4(float* key, int position, uint32_t* image) {
    F32 top = V::load(key), bottom = top;
    for (int c = 16; c < width_; c += 16) {
      top = V::max(top, V::load(key + c));
      bottom = V::min(bottom, V::load(key + c));
    }
    const float high = V::reduce_max(top), low = -V::reduce_max(V::sub(V::zero(), bottom));
    float best_error = std::numeric_limits<float>::infinity(), best_step = 0, best_low = low;
    for (int candidate = 0; candidate < kRangeCandidates; ++candidate) {
      const float cut = static_cast<float>(candidate) * kRangeStep * (high - low);
      const float candidate_low = low + cut, step = (high - low - 2 * cut) * (1.0f / 15);
      const float error = int4_error(key, width_, candidate_low, step);
      if (error < best_error) best_error = error, best_step = step, best_low = candidate_low;
    }
    if constexpr (!kTiles) {
      head_.key_scales[first_key_ + position] = best_step;
      head_.key_zeros[first_key_ + position] = best_low;
    }
    const F32 inverse = V::set(best_step > 0 ? 1 / best_step : 0), offset = V::set(best_low);
    for (int c = 0; c < width_; c += 16) {
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

  void transpose(int panel, int vector, const uint32_t* images) {
    const int stored_steps = S::kQk == Element::i4 ? sizes_.key_steps / 2 : sizes_.key_steps;
    auto* to = reinterpret_cast<uint32_t*>(head_.keys + a_.block * sizes_.key_block_bytes) +
               int64_t{panel} * stored_steps * kPanelKeys + vector * 16;
    for (int step = 0; step < sizes_.key_steps; step += 16) {
      I32 x[16];
      for (int lane = 0; lane < 16; ++lane) x[lane] = V::load_i32(images + lane * image_stride_ + step);
      V::transpose16(x);
      store_steps(x, to, step);
    }
  }

  // 16 images as a key tile of whole chunks, without the low halves that all are zeros.
  void copy_tiles(int panel, int vector, const uint32_t* images) {
    const int chunks = sizes_.key_steps / 16, written = S::kSplit && !has_low_halves(*a_.problem) ? chunks / 2 : chunks;
    auto* to = reinterpret_cast<uint32_t*>(head_.keys + a_.block * sizes_.key_block_bytes) +
               int64_t{panel} * kPanelKeys * sizes_.key_steps + int64_t{vector} * chunks * kTileDwords;
    for (int key = 0; key < 16; ++key)
      for (int chunk = 0; chunk < written; ++chunk)
        V::store_i32(to + chunk * kTileDwords + key * 16, V::load_i32(images + key * image_stride_ + chunk * 16));
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

  Scratch scratch_;
  float* rows_of_keys_ = nullptr;  // of one packed vector: [16][width_]
  int width_ = 0, image_stride_ = 0;
  F32 squares_[16], tops_[16];  // of the keys in rows_of_keys_, to be reduced
};

}  // namespace clary
