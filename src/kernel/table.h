// An instruction set's kernels as a table of functions: what each src/cpu/kernels_*.cpp instantiates.
#pragma once

#include "kernel/attend.h"
#include "kernel/direct.h"
#include "kernel/peak.h"
#include "kernel/tiles/attend.h"
#include "quant/pack.h"

namespace clary {

template <class V, class S>
void pack_block(const PackArgs& args) {
  Packer<V, S>(args).run();
}

template <class V>
void pack_int8_block(const PackArgs& args) {
  int8_has_bf16_values<V>(args.problem->dim_v) ? pack_block<V, Int8F16Scheme<V>>(args)
                                               : pack_block<V, Int8Scheme<V>>(args);
}

template <class V, class S>
void attend_item(const AttendArgs& args) {
  if constexpr (kUsesTiles<V, S>) {
    V::tile_config();
    TileAttend<V, S>(args).run();
    V::tile_release();
  } else {
    AttendArgs part = args;
    for (int first = 0; first < args.count; first += kItemRows) {
      part.rows = args.rows + first;
      part.count = args.count - first < kItemRows ? args.count - first : kItemRows;
      if (args.partial != nullptr) {
        part.partial = args.partial + first;
        part.partial_out = args.partial_out + int64_t{first} * args.sizes->value_width;
      }
      Attend<V, S>(part).run();
    }
  }
}

template <class V>
void attend_int8_item(const AttendArgs& args) {
  int8_has_bf16_values<V>(args.problem->dim_v) ? attend_item<V, Int8F16Scheme<V>>(args)
                                               : attend_item<V, Int8Scheme<V>>(args);
}

template <class V>
void attend_directly(const AttendArgs& args) {
  with_dtype(args.problem->dtype, [&](auto dtype) { Direct<V, dtype>(args).run(); });
}

template <class V>
PackedSizes sizes_of(Precision precision, int dim_qk, int dim_v) {
  switch (precision) {
    case Precision::exact: return packed_sizes<V, ExactScheme>(dim_qk, dim_v);
    case Precision::bf16: return packed_sizes<V, Bf16Scheme<V>>(dim_qk, dim_v);
    case Precision::int8_f16: return packed_sizes<V, Int8F16Scheme<V>>(dim_qk, dim_v);
    case Precision::int8:
      return int8_has_bf16_values<V>(dim_v) ? packed_sizes<V, Int8F16Scheme<V>>(dim_qk, dim_v)
                                            : packed_sizes<V, Int8Scheme<V>>(dim_qk, dim_v);
    case Precision::int4: return packed_sizes<V, Int4Scheme<V>>(dim_qk, dim_v);
    case Precision::bf16x3: return packed_sizes<V, Bf16x3Scheme<V>>(dim_qk, dim_v);
  }
  return {};
}

template <class V>
size_t pack_scratch_bytes(int dim_qk, int dim_v) {
  return Packer<V, ExactScheme>::scratch_bytes(dim_qk, dim_v);
}

template <class V>
size_t attend_scratch_bytes(const PackedSizes& sizes, const Problem& problem) {
  Arena arena;
  lay_out_item(arena, sizes, mask_blocks(problem));
  return arena.used_bytes();
}

template <class V>
constexpr KernelTable make_table() {
  return {V::kName,
          V::kHasTiles ? kTileItemRows : kItemRows,
          sizes_of<V>,
          channel_mean<V>,
          {pack_block<V, ExactScheme>, pack_block<V, Bf16Scheme<V>>, pack_block<V, Int8F16Scheme<V>>,
           pack_int8_block<V>, pack_block<V, Int4Scheme<V>>, nullptr, pack_block<V, Bf16x3Scheme<V>>},
          {attend_item<V, ExactScheme>, attend_item<V, Bf16Scheme<V>>, attend_item<V, Int8F16Scheme<V>>,
           attend_int8_item<V>, attend_item<V, Int4Scheme<V>>, nullptr, attend_item<V, Bf16x3Scheme<V>>},
          attend_directly<V>,
          merge_rows<V>,
          pack_scratch_bytes<V>,
          attend_scratch_bytes<V>,
          peak_work<V>,
          sum_memory<V>};
}

}  // namespace clary
