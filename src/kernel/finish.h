// The end of a row: normalise, give V its mean back, cast, store.
#pragma once

#include "quant/rows.h"

namespace clary {

template <class V>
void finish_row(const AttendArgs& args, const Row& row, const PartialRow& sums, const float* o) {
  const Problem& p = *args.problem;
  if (sums.exact != 0) return exact_row(p, *args.tensors, args.sequence, args.sequence_index, row, args.out_dtype);
  const float* sink = p.sinks == nullptr ? nullptr : p.sinks + row.head * p.sinks_head;
  const RowScales scales = row_scales(sums.m, sums.l, sums.constant, sink, row.lse != nullptr);
  const auto weight = V::set(scales.weight), mean_weight = V::set(scales.mean_weight);
  const int dim = static_cast<int>(p.dim_v);
  for (int c = 0; c < dim; c += 16) {
    auto x = V::mul(V::load(o + c), weight);
    if (args.sizes->centred_values) x = V::mul_add(V::load(args.head->value_mean + c), mean_weight, x);
    // An average of finite f16 values is one, though rounding V to bf16 may have carried it past the largest.
    if (args.out_dtype == DType::f16) x = V::max(V::set(-65504), V::min(V::set(65504), x));
    Rows<V>::store_cut(x, row.out, args.out_dtype, c, dim);
  }
  if (row.lse != nullptr) *row.lse = scales.lse;
}

// Adds the parts of each row, in their order, and finishes it: the first part is where they meet.
template <class V>
void merge_rows(const MergeArgs& args) {
  const AttendArgs& a = args.rows;
  const int width = a.sizes->value_width;
  for (int r = 0; r < a.count; ++r) {
    PartialRow sums = a.partial[r];
    float* o = a.partial_out + int64_t{r} * width;
    for (int part = 1; part < args.parts; ++part) {
      const PartialRow& next = a.partial[int64_t{part} * a.count + r];
      const float* from = a.partial_out + (int64_t{part} * a.count + r) * width;
      sums.exact |= next.exact;
      if (next.l == 0) continue;
      if (sums.l == 0) sums.m = next.m;
      const float m = next.m > sums.m ? next.m : sums.m;
      const auto old_weight = V::exp2(V::set(sums.m - m)), new_weight = V::exp2(V::set(next.m - m));
      for (int c = 0; c < width; c += 16)
        V::store(o + c, V::mul_add(V::load(from + c), new_weight, V::mul(V::load(o + c), old_weight)));
      sums.l = V::reduce_max(V::mul_add(V::set(next.l), new_weight, V::mul(V::set(sums.l), old_weight)));
      sums.m = m;
    }
    finish_row<V>(a, a.rows[r], sums, o);
  }
}

}  // namespace clary
