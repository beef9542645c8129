// One block of one head on its way into packed form: where its rows are and which of them exist.
#pragma once

#include "core/arena.h"
#include "quant/rows.h"

namespace clary {

template <class V, class S>
class BlockPacker {
 protected:
  using F32 = typename V::F32;
  using I32 = typename V::I32;

  explicit BlockPacker(const PackArgs& args) : a_(args), sizes_(*args.sizes), head_(*args.head) {
    first_key_ = a_.block * kBlockKeys;
    const int64_t left = a_.sequence.len_k - first_key_;
    keys_ = static_cast<int>(left < kBlockKeys ? left : kBlockKeys);
    find_hidden();
  }

  // Keys that nobody sees are packed as zeros: what they hold must not widen the scales of their neighbours.
  void find_hidden() {
    any_hidden_ = a_.problem->hides_keys();
    if (any_hidden_) a_.problem->find_hidden_keys(a_.sequence_index, a_.head_kv, first_key_, 1, keys_, hidden_);
  }

  bool has(int key) const { return key < keys_ && !(any_hidden_ && hidden_[key]); }

  // Key or value `key` of the block.
  const void* row(const void* base, const Strides& strides, int64_t key) const {
    const int64_t index = a_.sequence.batch * strides.batch + a_.head_kv * strides.head +
                          (a_.sequence.k_begin + first_key_ + key) * strides.row;
    return static_cast<const char*>(base) + index * size_bytes(a_.problem->dtype);
  }

  void mark_nonfinite(int key) {
    head_.nonfinite[first_key_ + key] = 1;
    head_.block_nonfinite[a_.block] = 1;
  }

  // One value as floats, centred; zeros where there is none.
  void load_value(int key, float* to) {
    const Problem& p = *a_.problem;
    const int width = sizes_.value_width, dim = static_cast<int>(p.dim_v);
    if (!has(key)) {
      std::memset(to, 0, static_cast<size_t>(width) * 4);
      return;
    }
    if (width > round_up(dim, 16)) V::store(to + width - 16, V::zero());
    if (Rows<V>::read_finite(row(a_.tensors->v, p.v, key), p.dtype, dim, to)) mark_nonfinite(key);
    if constexpr (S::kCentreValues)
      for (int c = 0; c < dim; c += 16) V::store(to + c, V::sub(V::load(to + c), V::load(head_.value_mean + c)));
  }

  // 16 channels of two keys.
  static I32 bf16_pair(F32 x, F32 y) {
    const I32 high_half = V::set_i32(static_cast<int32_t>(0xffff0000u));
    return V::or_i32(V::template shift_right<16>(round_bf16(x)), V::and_i32(round_bf16(y), high_half));
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
  int64_t first_key_ = 0;
  int keys_ = 0;
  bool any_hidden_ = false, hidden_[kBlockKeys];
};

}  // namespace clary
