// Attention by wgmma: sm_90a. A block of three warp groups stays on its SM and takes work items in turn.
//
//     group 0      producer: one thread issues bulk copies of tiles; gives its registers away
//     groups 1, 2  consumers of 64 queries each
//
//     shared memory:  Q image (128 rows) | stages of (K image | V^T image | ones) | barriers
//     a stage of K, one of V and Q each have a `full` barrier (bytes have come) and an `empty` one (8 warps have read)
//
// A consumer overlaps the tensor core with its own softmax, and the two consumers take turns in issuing products, so
// that one's softmax runs under the other's products (the schedule of FlashAttention-3):
//
//     issue S = Q K_i | issue P V_i-1 | wait for S | softmax of S | wait for P V | O = alpha O + T | round P
//
// Registers per consumer thread, of 240: S keys / 2, P keys / 8 (e4m3) or / 4, O dim / 2, T as O where P is e4m3
// (FP8 tensor cores keep few bits of a sum, so each tile starts at zero, see mma_attention.h). At dims 192 and 256
// T cannot live beside S: there, P V comes in two halves of the channels after the softmax, and only the turns overlap.
//
//     kernel              S    P    O    T   sum
//     INT8 + FP8, 64     64   16   32   36   148
//     INT8 + FP8, 96     64   16   48   52   180
//     INT8 + FP8, 128    64   16   64   68   212      the rest: rows, scales, descriptors (about 20)
//     INT8 + FP8, 192    64   16   96   48   160      S is dead when T is born
//     INT8 + FP8, 256    64   16  128   64   208      the same
//     16-bit, 128        64   32   64    -   160
//     16-bit, 192        32   16   96    -   144      64 keys
//     16-bit, 256        32   16  128    -   176      64 keys
//
// A tile that needs masks is computed with nothing in flight: its code is large, and would otherwise cost the full
// tiles registers and order.
//
// Tiles are copied by one bulk copy each, not through tensor maps: images in global memory are what shared memory is
// to hold (layout/image.h), so the host has nothing to encode and nothing depends on strides.
#pragma once

#include <type_traits>

#include "cuda/attention/epilogue.h"
#include "cuda/attention/packed_exp2.h"
#include "cuda/attention/rows.h"
#include "cuda/attention/softmax.h"
#include "cuda/attention/walk.h"
#include "cuda/layout/image.h"

namespace clary::cuda {

template <class M, class C>
class WgmmaAttention;

// kSpecial_: of 8 exponentials, how many by the special function unit (packed_exp2.h), where P is e4m3.
// kTurns_: consumers take turns in issuing products.
template <Element kQk_, Element kPv_, int kDim_, int kKeys_, int kStages_, int kSpecial_ = 8, bool kTurns_ = true>
struct WgmmaConfig {
  template <class M>
  using Kernel = WgmmaAttention<M, WgmmaConfig>;
  static constexpr bool kPersistent = true;
  static constexpr Element kQk = kQk_, kPv = kPv_;
  static constexpr int kDim = kDim_, kKeys = kKeys_, kStages = kStages_, kSpecial = kSpecial_;
  static constexpr bool kTurns = kTurns_;
  static constexpr int kConsumers = 2, kRows = 64 * kConsumers, kThreads = 128 * (kConsumers + 1);
  // e4m3 sums of one tile are kept apart; whether S and they fit beside O decides on the overlap within a group.
  static constexpr bool kTwoLevel = kPv == Element::e4m3;
  static constexpr bool kOverlap = !(kTwoLevel && kDim > 128);
  // Eight columns of ones beside V: their products are the sums of the rounded P, which saves an addition per score and
  // fits the numerator better. Where P has 16 bits, and at dim 256, the tensor core has no time to spare.
  static constexpr bool kOnes = kTwoLevel && kOverlap;
  static constexpr int kColumns = kDim <= 128 ? kDim : kDim / 2, kParts = kDim / kColumns;  // of one product P V
  static constexpr int kQkRowBytes = qk_row_bytes(kQk, kDim), kPvRowBytes = kKeys * bits_of(kPv) / 8;
  static constexpr int kQBytes = kRows * kQkRowBytes, kKBytes = kKeys * kQkRowBytes, kVBytes = kDim * kPvRowBytes;
  static constexpr int kOnesBytes = kOnes ? 8 * kPvRowBytes : 0;
  static_assert(!kOnes || kPvRowBytes == 128, "the ones are to be the next rows of V's one panel");
  static constexpr int kStageBytes = kKBytes + kVBytes + kOnesBytes;
  static constexpr int kBarriers = kQBytes + kStages * kStageBytes;  // their offset
  static constexpr int kSharedBytes = kBarriers + 8 * (2 + 4 * kStages);
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
  static_assert(kSharedBytes <= 227 * 1024, "shared memory of a block");
  static_assert(128 * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536, "registers of an SM");
};

// A position in the ring of stages; producer and consumers each have their own and advance alike. The parity changes
// with every round.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  CLARY_DEVICE void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

template <class M, class C>
class WgmmaAttention {
 public:
  static CLARY_DEVICE void run(const AttentionParams& p, uint32_t shared) {
    const Barriers bars(shared);
    if (M::thread() == 0) bars.init();
    if (C::kOnes) write_ones(shared);
    M::sync();
    if (M::all(M::thread() < 128)) {
      M::template give_registers<C::kProducerRegisters>();
      if (M::thread() == 0) produce(p, shared, bars);
    } else {
      M::template take_registers<C::kConsumerRegisters>();
      consume(p, shared, bars, M::all(M::thread() < 256) ? 0 : 1);
    }
  }

 private:
  using Score = std::conditional_t<is_integer(C::kQk), int, float>;
  static constexpr int kKeyTiles = C::kKeys / 8, kDimTiles = C::kDim / 8, kColumnTiles = C::kColumns / 8;
  using Soft = Softmax<M, C::kPv, kKeyTiles, !C::kOnes>;
  using Packed = PackedExp2<M, kKeyTiles, C::kOnes ? C::kSpecial : 0>;
  static constexpr uint32_t kHighQk = descriptor_high(C::kQkRowBytes), kHighV = descriptor_high(C::kPvRowBytes);

  // `full`: one arrival, the producer's, which also says how many bytes will come. `empty`: one arrival per consumer
  // warp, since a warp only knows that its own products have been waited for.
  struct Barriers {
    uint32_t base;
    CLARY_DEVICE explicit Barriers(uint32_t shared) : base(shared + C::kBarriers) {}
    CLARY_DEVICE uint32_t q_full() const { return base; }
    CLARY_DEVICE uint32_t q_empty() const { return base + 8; }
    CLARY_DEVICE uint32_t k_full(int stage) const { return at(0, stage); }
    CLARY_DEVICE uint32_t k_empty(int stage) const { return at(1, stage); }
    CLARY_DEVICE uint32_t v_full(int stage) const { return at(2, stage); }
    CLARY_DEVICE uint32_t v_empty(int stage) const { return at(3, stage); }
    CLARY_DEVICE void init() const {
      M::barrier_init(q_full(), 1);
      M::barrier_init(q_empty(), 4 * C::kConsumers);
      for (int stage = 0; stage < C::kStages; ++stage) {
        M::barrier_init(k_full(stage), 1);
        M::barrier_init(v_full(stage), 1);
        M::barrier_init(k_empty(stage), 4 * C::kConsumers);
        M::barrier_init(v_empty(stage), 4 * C::kConsumers);
      }
      M::barrier_init_done();
    }

   private:
    CLARY_DEVICE uint32_t at(int kind, int stage) const {
      return base + 16 + 8 * static_cast<uint32_t>(kind * C::kStages + stage);
    }
  };

  static CLARY_DEVICE uint32_t stage_address(uint32_t shared, int stage) {
    return shared + static_cast<uint32_t>(C::kQBytes + stage * C::kStageBytes);
  }

  // Behind V in every stage, where no copy comes.
  static CLARY_DEVICE void write_ones(uint32_t shared) {
    constexpr uint32_t kOnesInE4m3 = 0x38383838;
    for (int stage = 0; stage < C::kStages; ++stage)
      for (int at = 4 * M::thread(); at < C::kOnesBytes; at += 4 * C::kThreads)
        M::store_shared(stage_address(shared, stage) + C::kKBytes + C::kVBytes + static_cast<uint32_t>(at),
                        kOnesInE4m3);
    M::shared_writes_done();
  }

  // ---- producer -----------------------------------------------------------------------------------------------
  // Runs ahead of the consumers by as many tiles as there are stages, over the ends of work items. K and V of a stage
  // have barriers of their own: K is free one softmax earlier than V.
  static CLARY_DEVICE void produce(const AttentionParams& p, uint32_t shared, const Barriers& bars) {
    Ring<C::kStages> ring;
    uint32_t q_parity = 1;  // of `empty` barriers, the phase before the first has completed
    for (int64_t index = M::block_x(), count = work_items(p.shape); index < count; index += M::blocks_x()) {
      const Item item(p, index);
      if (item.is_beyond(C::kRows) || !item.has_tiles()) continue;
      M::barrier_wait(bars.q_empty(), q_parity);
      q_parity ^= 1;
      M::barrier_expect(bars.q_full(), C::kQBytes);
      M::copy_bulk(shared, p.q + item.query_tile * C::kQBytes, C::kQBytes, bars.q_full());
      for (int tile = item.first; tile < item.walk.range.end; tile = item.walk.next(tile + 1)) {
        const uint32_t to = stage_address(shared, ring.stage);
        M::barrier_wait(bars.k_empty(ring.stage), ring.parity ^ 1);
        M::barrier_expect(bars.k_full(ring.stage), C::kKBytes);
        M::copy_bulk(to, p.k + (item.key_base + tile) * C::kKBytes, C::kKBytes, bars.k_full(ring.stage));
        M::barrier_wait(bars.v_empty(ring.stage), ring.parity ^ 1);
        M::barrier_expect(bars.v_full(ring.stage), C::kVBytes);
        M::copy_bulk(to + C::kKBytes, p.v + (item.key_base + tile) * C::kVBytes, C::kVBytes, bars.v_full(ring.stage));
        ring.advance();
      }
    }
    // A block must not end before its copies are used: shared memory would be given to another one.
    for (int i = 0; i < C::kStages; ++i, ring.advance()) {
      M::barrier_wait(bars.k_empty(ring.stage), ring.parity ^ 1);
      M::barrier_wait(bars.v_empty(ring.stage), ring.parity ^ 1);
    }
  }

  // ---- consumers ----------------------------------------------------------------------------------------------
  struct State {
    Score s[kKeyTiles][4];
    uint32_t p[Soft::kSteps][4];
    float o[kDimTiles][4];
    float t[C::kTwoLevel ? kColumnTiles + C::kOnes : 1][4];
    RowState row;
    float alpha[2];    // of the tile whose P is packed
    float q_scale[2];  // octaves per unit of the integer product and of K's scale
    bool pending;      // P is packed, its product has not been issued
    Ring<C::kStages> k, v;
  };

  // What a consumer thread knows of itself. Addresses are descriptors from the start: stages and steps are additions.
  struct Consumer {
    const AttentionParams& p;
    const Barriers& bars;
    uint32_t q, stages;    // descriptors: of this group's rows of Q, and of the first stage
    int group, lane, row;  // row: of this thread, in the block's tile
    bool leads;            // one lane per warp arrives at barriers for all

    CLARY_DEVICE uint32_t k(int stage) const { return stages + static_cast<uint32_t>(stage * C::kStageBytes) / 16; }
    CLARY_DEVICE uint32_t v(int stage) const { return k(stage) + C::kKBytes / 16; }
    CLARY_DEVICE void release(uint32_t barrier) const {
      if (leads) M::barrier_arrive(barrier);
    }
    CLARY_DEVICE float scale_of_keys(const Item& item, int tile) const {
      return p.k_scale[(item.key_base + tile) * kKeyGroups + lane % 4];
    }
    CLARY_DEVICE void wait_turn() const {
      if (C::kTurns) M::turn_wait(1 + group);
    }
    CLARY_DEVICE void pass_turn() const {
      if (C::kTurns) M::turn_pass(2 - group);
    }
  };

  static CLARY_DEVICE void consume(const AttentionParams& p, uint32_t shared, const Barriers& bars, int group) {
    const int thread = M::thread() % 128, lane = thread % 32;
    const Consumer me{p,
                      bars,
                      descriptor_low(shared + static_cast<uint32_t>(group * 64 * panel_bytes(C::kQkRowBytes))),
                      descriptor_low(shared + C::kQBytes),
                      group,
                      lane,
                      group * 64 + thread / 32 * 16 + lane / 4,
                      lane == 0};
    State state;
    uint32_t q_parity = 0;
    if (group == 1) me.pass_turn();  // group 0 begins
    for (int64_t index = M::block_x(), count = work_items(p.shape); index < count; index += M::blocks_x()) {
      const Item item(p, index);
      if (item.is_beyond(C::kRows)) continue;
      begin(me, item, state);
      if (item.has_tiles()) {
        M::barrier_wait_warp(bars.q_full(), q_parity);
        q_parity ^= 1;
        walk_tiles(me, item, state);
      }
      finish(me, item, state);
    }
    if (group == 0) me.wait_turn();  // every pass has its wait
  }

  static CLARY_DEVICE void begin(const Consumer& me, const Item& item, State& state) {
    reset(state.row);
    state.pending = false;
#pragma unroll
    for (int n = 0; n < kDimTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) state.o[n][i] = 0;
    for (int r = 0; r < 2; ++r) {
      state.alpha[r] = 0;
      state.q_scale[r] =
          is_integer(C::kQk) ? me.p.q_scale[item.query_tile * C::kRows + me.row + 8 * r] : me.p.score_scale;
    }
  }

  // Full tiles in a loop of their own, with the product of the tile before pending. The first full tile of an item
  // has no tile before it and comes apart.
  static CLARY_DEVICE void walk_tiles(const Consumer& me, const Item& item, State& state) {
    int tile = item.first;
    const int end = item.walk.range.end;
    while (tile < end) {
      const int stop = tile + item.walk.template full_run<M>(tile);
      wait_k(me, state);
      if (tile == stop) {
        partial_tile(me, item, tile, state);
        tile = item.walk.next(tile + 1);
      } else if (C::kOverlap && !state.pending) {  // no product to overlap with
        full_tile<false>(me, item, tile, false, state);
        tile = item.walk.next(tile + 1);
      } else {
        const bool has_more = item.walk.next(stop) < end;
#pragma unroll 1
        do full_tile<C::kOverlap>(me, item, tile, has_more || tile + 1 < stop, state);
        while (++tile < stop);
        tile = item.walk.next(tile);
      }
    }
    me.release(me.bars.q_empty());
    if (C::kOverlap) drain(me, state);
  }

  static CLARY_DEVICE void wait_k(const Consumer& me, const State& state) {
    M::barrier_wait_warp(me.bars.k_full(state.k.stage), state.k.parity);
  }
  // Raw scores of the next tile, whose keys have been waited for; in flight on return.
  static CLARY_DEVICE void issue_scores(const Consumer& me, State& state) {
    me.wait_turn();
    M::pin(state.s);
    M::fence_products();
    const uint32_t k = me.k(state.k.stage);
#pragma unroll
    for (int step = 0; step < C::kQkRowBytes / kStepBytes; ++step)
      M::template product_ss<C::kQk, C::kKeys, kHighQk, kHighQk>(
          state.s, me.q + descriptor_step(C::kRows, C::kQkRowBytes, step),
          k + descriptor_step(C::kKeys, C::kQkRowBytes, step), step > 0);
    M::commit_products();
  }
  // After the wait for the scores: K has been read. The producer may fill the stage again.
  static CLARY_DEVICE void release_k(const Consumer& me, State& state) {
    me.release(me.bars.k_empty(state.k.stage));
    state.k.advance();
  }

  // Channels of part `part` of P V, into T or onto O; in flight on return.
  static CLARY_DEVICE void issue_values(const Consumer& me, int part, State& state) {
    if (part == 0) M::barrier_wait_warp(me.bars.v_full(state.v.stage), state.v.parity);
    M::pin(state.p);
    if (C::kTwoLevel)
      M::pin(state.t);
    else
      M::pin(state.o);
    M::fence_products();
    const uint32_t v =
        me.v(state.v.stage) + static_cast<uint32_t>(part * C::kColumns * panel_bytes(C::kPvRowBytes)) / 16;
#pragma unroll
    for (int step = 0; step < Soft::kSteps; ++step)
      M::template product_rs<C::kPv, C::kColumns + 8 * C::kOnes, kHighV>(
          C::kTwoLevel ? state.t : &state.o[part * kColumnTiles], state.p[step],
          v + descriptor_step(C::kDim, C::kPvRowBytes, step), !C::kTwoLevel || step > 0);
  }
  static CLARY_DEVICE void release_v(const Consumer& me, State& state) {
    me.release(me.bars.v_empty(state.v.stage));
    state.v.advance();
  }

  // O of the pending tile: issue all, in overlapping kernels.
  static CLARY_DEVICE void issue_pending(const Consumer& me, State& state) {
#pragma unroll
    for (int part = 0; part < (C::kTwoLevel ? 1 : C::kParts); ++part) issue_values(me, part, state);
    M::commit_products();
  }
  // After the wait for P V: its registers may be read, and V's stage may be filled.
  static CLARY_DEVICE void take_pending(const Consumer& me, State& state) {
    if (C::kTwoLevel)
      M::pin(state.t);
    else
      M::pin(state.o);
    M::pin(state.p);
    release_v(me, state);
    if (C::kTwoLevel) flush(0, state);
    if constexpr (C::kOnes)  // every column is the sum of the row
      for (int r = 0; r < 2; ++r) state.row.l[r] = M::fma(state.row.l[r], state.alpha[r], state.t[kColumnTiles][2 * r]);
    state.pending = false;
  }
  // The second level of accumulation and the rescale are one FFMA.
  static CLARY_DEVICE void flush(int part, State& state) {
#pragma unroll
    for (int n = 0; n < (C::kTwoLevel ? kColumnTiles : 0); ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& o = state.o[part * kColumnTiles + n][i];
        o = M::fma(o, state.alpha[i >> 1], state.t[n][i]);
      }
  }
  // Without anything to overlap with: before a partial tile, and at the end.
  static CLARY_DEVICE void drain(const Consumer& me, State& state) {
    if (!state.pending) return;
    issue_pending(me, state);
    M::template wait_products<0>();
    take_pending(me, state);
  }

  // P is packed and waits for its product; where O is not kept apart it is rescaled now.
  static CLARY_DEVICE void accept(const Consumer& me, const float (&alpha)[2], State& state) {
    for (int r = 0; r < 2; ++r) state.alpha[r] = alpha[r];
    if constexpr (!C::kTwoLevel) {
#pragma unroll
      for (int n = 0; n < kDimTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) state.o[n][i] *= alpha[i >> 1];
    }
    state.pending = true;
    if constexpr (!C::kOverlap) {
#pragma unroll
      for (int part = 0; part < C::kParts; ++part) {
        issue_values(me, part, state);
        M::commit_products();
        M::template wait_products<0>();
        M::pin(state.t);
        flush(part, state);
      }
      M::pin(state.p);
      release_v(me, state);
      state.pending = false;
    }
  }

  // A tile that everyone sees. kOverlapped: the product of the tile before runs under its softmax.
  template <bool kOverlapped>
  static CLARY_DEVICE void full_tile(const Consumer& me, const Item& item, int tile, bool has_next, State& state) {
    issue_scores(me, state);
    float of_keys = 1;  // fetched while the product runs
    if (is_integer(C::kQk)) of_keys = me.scale_of_keys(item, tile);
    if (kOverlapped) issue_pending(me, state);
    me.pass_turn();
    M::template wait_products<kOverlapped ? 1 : 0>();
    M::pin(state.s);
    release_k(me, state);
    const float scale[2] = {state.q_scale[0] * of_keys, state.q_scale[1] * of_keys};
    std::conditional_t<C::kOnes, typename Packed::Raised, float[kKeyTiles][4]> x;
    float alpha[2];
    if constexpr (C::kOnes)
      Packed::raise(state.s, scale, state.row, alpha, x);
    else
      Soft::full(state.s, scale, state.row, alpha, x);
    // ptxas moves the wait for P V above the softmax, which ends the overlap, unless a branch stands between them.
    if (has_next) wait_k(me, state);
    if (kOverlapped) {
      M::template wait_products<0>();
      take_pending(me, state);
    }
    if constexpr (C::kOnes)
      Packed::pack(x, state.p);
    else
      Soft::pack(x, state.p);
    accept(me, alpha, state);
  }

  // A tile with masks: nothing is in flight while it is judged.
  static CLARY_DEVICE void partial_tile(const Consumer& me, const Item& item, int tile, State& state) {
    drain(me, state);
    issue_scores(me, state);
    me.pass_turn();
    M::template wait_products<0>();
    M::pin(state.s);
    release_k(me, state);
    float of_keys = 1, shift[2], x[kKeyTiles][4], alpha[2];
    if (is_integer(C::kQk)) of_keys = me.scale_of_keys(item, tile);
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) x[n][i] = M::to_float(state.s[n][i]) * (state.q_scale[i >> 1] * of_keys);
    load_shift(me, item, shift);
    const int key = tile * C::kKeys + 2 * (me.lane % 4);
    const Place at{item.work.sequence, item.work.head, item.work.tile * C::kRows + me.row, key,
                   item.key_base * C::kKeys + key};
    PartialScores<M, kKeyTiles>::apply(me.p, item.span, at, shift, x);
    Soft::partial(x, state.row, alpha);
    Soft::pack(x, state.p);
    accept(me, alpha, state);
  }

  static CLARY_DEVICE void load_shift(const Consumer& me, const Item& item, float (&shift)[2]) {
    for (int r = 0; r < 2; ++r)
      shift[r] = is_integer(C::kQk) ? me.p.q_shift[item.query_tile * C::kRows + me.row + 8 * r] : 0;
  }

  static CLARY_DEVICE void finish(const Consumer& me, const Item& item, const State& state) {
    float shift[2];
    load_shift(me, item, shift);
    RowState row = state.row;
    if (C::kOnes)  // each of the four lanes has all of the sum
      for (int r = 0; r < 2; ++r) row.l[r] *= 0.25f;
    Epilogue<M, C::kPv, C::kDim>::write(me.p, item.work, item.span, item.work.tile * C::kRows + me.row, me.lane, row,
                                        shift, state.o);
  }
};

}  // namespace clary::cuda
