// One work item on the matrix engine: as kernel/attend.h, with the loops the other way round where L2 allows.
//
//   for each chunk of keys (half of L2)
//     for each unit of 32 rows                 its O^T and P stay in L1
//       for each block of 256 keys
//         S^T and P^T (fused, ranged, or the natural way) -> O^T += V^T P^T
//   transpose O, finish rows
//
// The reference of a row's exponentials is lazy: it moves only when a maximum has grown by 30 octaves. Until then no
// product is rescaled; P is bf16 with all its exponents, so its relative error does not suffer. P in bytes is relative
// to the block's maximum, and its products are scaled as they are added to O.
#pragma once

#include "kernel/item_kernel.h"
#include "kernel/tiles/bytes.h"
#include "kernel/tiles/natural.h"

namespace clary {

template <class V, class S>
class TileAttend : ItemKernel<V, S> {
 public:
  explicit TileAttend(const AttendArgs& args)
      : Base(args),
        scores_(args, s_),
        products_(args, s_, scores_),
        natural_(args, s_, rules_, this->softmax_, scores_) {}

  void run() {
    this->begin();
    transpose_queries();
    // reset() has set m to -inf. A bf16 P has a reference from the start, for what is within 30 octaves of it.
    if constexpr (!Words::kBytes)
      for (int r = 0; r < s_.rows; r += 16) V::store(s_.m + r, V::zero());
    this->find_exact_rows(kReach);
    // Of all blocks, also of those that this item does not see: how rows are shared out must not change a bit.
    for (int64_t block = 0; block * kBlockKeys < a_.sequence.len_k; ++block)
      largest_norm_ = std::max(largest_norm_, a_.head->block_norm[block]);
    const int64_t bytes = a_.sizes->key_block_bytes + a_.sizes->value_block_bytes;
    const int64_t chunk = std::max<int64_t>(1, kKeyChunkBytes / bytes);
    for (int64_t begin = a_.block_begin; begin < a_.block_end; begin += chunk)
      for (int row = 0; row < a_.count; row += kTileUnitRows)
        for (int64_t block = begin; block < begin + chunk && block < a_.block_end; ++block) run_block(row, block);
    products_.finish();
    restore_rows();
    this->end();
  }

 private:
  using Base = ItemKernel<V, S>;
  using Base::a_, Base::s_, Base::rules_;
  using Tile = typename Base::Tile;
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using Words = TileWords<S>;
  // Beyond +-4096 octaves INT8 cannot tell neighbouring logits apart, beyond 32768 words in f32 cannot. What two bf16
  // leave out of a product of two numbers is up to 3 * 2^-16 of it, 0.2 octaves at 4096.
  static constexpr float kReach = S::kIntegerQk || S::kSplit ? 4096 : 32768;
  // The fused way without clamps holds 290 octaves below the reference, which itself lies within the reach. And words
  // per product stay below 1.33, so that kMagic times them is exact: at most 128 * 120 by a product of two bytes.
  // Octaves in f32 need no clamps.
  static constexpr float kFusedReach = S::kSplit ? kReach : 120;
  static constexpr int kUnitPanels = S::kSplit ? kSplitPanels : kPanels;

  // Rows of queries become tiles, in place: [chunk][16 steps][16 queries], one dword each.
  void transpose_queries() const {
    for (int r = 0; r < s_.rows; r += 16)
      for (int64_t step = 0; step < s_.q_stride; step += 16) {
        uint32_t* at = s_.q + r * s_.q_stride + step;
        I32 x[16];
        for (int i = 0; i < 16; ++i) x[i] = V::load_i32(at + i * s_.q_stride);
        V::transpose16(x);
        for (int i = 0; i < 16; ++i) V::store_i32(at + i * s_.q_stride, x[i]);
      }
  }

  void run_block(int row, int64_t block) {
    TileUnit u{row, block, kPanels, 0, products_.turn()};
    int full = 0, tiles = 0, widest = 0;
    bool fused = !a_.problem->changes_scores();
    float reach = 0;
    for (int r = row; r < row + kTileUnitRows && r < a_.count; r += kUnitRows, ++tiles) {
      Unit half = this->unit_of(r, block, kUnitRows);
      const Tile tile = this->classify(half);
      fused = fused && one_bias(half);
      reach = std::max(reach, this->bounds(half).reach);
      if (tile == Tile::skipped) continue;
      full += tile == Tile::full;
      widest = std::max(widest, half.panel_end - half.panel_begin);
      u.panel_begin = std::min(u.panel_begin, half.panel_begin), u.panel_end = std::max(u.panel_end, half.panel_end);
    }
    if (u.panel_begin >= u.panel_end) return;
    const bool whole = full == tiles && widest == u.panel_end - u.panel_begin;
    const bool with_mask = !whole && a_.problem->mask.kind != Mask::Kind::none && !a_.mask_folded;
    // An additive mask may have taken the reference anywhere.
    const bool fast = whole && reach * largest_norm_ < kFusedReach && a_.problem->mask.kind != Mask::Kind::additive;
    for (int panel = 0; panel < kPanels; panel += kUnitPanels) {
      TileUnit part = u;
      part.first_panel = panel;
      part.panel_begin = std::max(u.panel_begin, panel), part.panel_end = std::min(u.panel_end, panel + kUnitPanels);
      if (part.panel_begin < part.panel_end) run_part(part, fused, fast, with_mask);
    }
  }

  void run_part(const TileUnit& u, bool fused, bool fast, bool with_mask) {
    if (!fused || with_mask || !run_fused(u, fast)) {
      products_.release_tiles();
      natural_.run(u, with_mask, rows_of_o(a_, s_, u.first_row));
    }
    products_.run(u);
  }

  // All rows of the tile are of one head, or share what is added to the scores of a key.
  bool one_bias(const Unit& u) const { return s_.key_bias[u.first_row] == s_.key_bias[u.first_row + u.real_rows - 1]; }

  bool run_fused(const TileUnit& u, bool fast) {
    float* const evict = products_.take_pending(scores_.raw());
    fast ? scores_.template run<false>(u, evict) : scores_.template run<true>(u, evict);
    return holds(u, 0) && holds(u, 1);
  }

  // No maximum too far above the reference, and none so far below that a row that has seen no key yet would lose it.
  bool holds(const TileUnit& u, int g) const {
    const I32 top = scores_.top(g);
    if (V::reduce_max_i32(top) > Words::kHighest) return false;
    const F32 missing = V::sub(V::set(Words::kLowest), V::to_f32(top));
    const int row = u.first_row + g * 16;
    const F32 seen = Words::kBytes ? V::select_less(V::set(-std::numeric_limits<float>::infinity()),
                                                    V::load(s_.m + row), V::set(1), V::zero())
                                   : V::load(s_.l + row);
    return V::reduce_max(V::select_less(V::zero(), seen, V::zero(), missing)) <= 0;
  }

  // O^T to rows, and sums and references to the form that ItemKernel ends with.
  void restore_rows() const {
    const int width = a_.sizes->value_width;
    for (int row = 0; row < s_.rows; row += kTileUnitRows) {
      float* const o = rows_of_o(a_, s_, row);
      for (int tile = 0; tile < width / 8; ++tile) {
        I32 x[16];
        for (int i = 0; i < 16; ++i) x[i] = V::load_i32(o + tile * kTileDwords + i * 16);
        V::transpose16(x);
        float* to = s_.spare + tile % 2 * 16 * width + tile / 2 * 16;
        for (int i = 0; i < 16; ++i) V::store_i32(to + i * width, x[i]);
      }
      std::memcpy(o, s_.spare, static_cast<size_t>(kTileUnitRows) * static_cast<size_t>(width) * sizeof(float));
    }
    for (int r = s_.rows - 1; r >= 0; --r) {
      const float l = s_.l[r];
      if (l == 0) s_.m[r] = -std::numeric_limits<float>::infinity();
      V::store(s_.l + r * 16, V::zero());
      s_.l[r * 16] = l;
    }
  }

  TileScores<V, S> scores_;
  std::conditional_t<Words::kBytes, TileBytes<V, S>, TileProducts<V, S>> products_;
  TileNatural<V, S> natural_;
  float largest_norm_ = 0;
};

}  // namespace clary
