// Rows from the definition, in double: slow, and right for every input.
#include <cmath>
#include <limits>

#include "cpu/isa/scalar.h"
#include "kernel/args.h"

namespace clary {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class ExactRow {
 public:
  ExactRow(const Problem& p, const Tensors& t, const Sequence& sequence, int64_t sequence_index, const Row& row)
      : p_(p),
        t_(t),

        index_(sequence_index),
        row_(row),
        keys_(p.visible_keys(sequence, row.query)) {
    offset_ = p.offset(sequence);
    slope_ = p.alibi_slope(index_, row.head);
    const int64_t kv = row.head / p.group;
    q_ = sequence.batch * p.q.batch + row.head * p.q.head + (sequence.q_begin + row.query) * p.q.row;
    k_ = sequence.batch * p.k.batch + kv * p.k.head + sequence.k_begin * p.k.row;
    v_ = sequence.batch * p.v.batch + kv * p.v.head + sequence.k_begin * p.v.row;
  }

  void run(DType out_dtype) {
    double top = -kInfinity;
    bool any = false, nan = false;
    for (int64_t j = keys_.begin; j < keys_.end; ++j) {
      if (!p_.mask_shows(index_, row_.head, row_.query, j)) continue;
      const double s = score(j);
      any = true, nan = nan || std::isnan(s);
      if (s > top) top = s;
    }
    const double sink = p_.sinks == nullptr ? -kInfinity : static_cast<double>(p_.sinks[row_.head * p_.sinks_head]);
    const double reference = nan ? std::numeric_limits<double>::quiet_NaN() : sink > top ? sink : top;
    if (!any) {
      write(out_dtype, 0, nullptr, sink);
      return;
    }
    double sum[1024] = {}, denominator = std::exp(sink - reference);
    for (int64_t j = keys_.begin; j < keys_.end; ++j) {
      if (!p_.mask_shows(index_, row_.head, row_.query, j)) continue;
      const double weight = std::exp(score(j) - reference);
      denominator += weight;
      for (int64_t c = 0; c < p_.dim_v; ++c) sum[c] += weight * element(t_.v, p_.dtype, v_ + j * p_.v.row + c);
    }
    write(out_dtype, denominator, sum, reference + std::log(denominator));
  }

 private:
  double score(int64_t j) const {
    double s = 0;
    for (int64_t c = 0; c < p_.dim_qk; ++c)
      s += element(t_.q, p_.dtype, q_ + c) * element(t_.k, p_.dtype, k_ + j * p_.k.row + c);
    s *= static_cast<double>(p_.softmax_scale);
    if (p_.softcap > 0) s = static_cast<double>(p_.softcap) * std::tanh(s / static_cast<double>(p_.softcap));
    if (slope_ != 0) s -= slope_ * std::fabs(static_cast<double>(row_.query + offset_ - j));
    return s + p_.mask_value(index_, row_.head, row_.query, j);
  }

  // sum == nullptr: a row of zeros.
  void write(DType dtype, double denominator, const double* sum, double lse) const {
    for (int64_t c = 0; c < p_.dim_v; ++c) {
      const float x = sum == nullptr ? 0 : static_cast<float>(sum[c] / denominator);
      if (dtype == DType::f32) {
        static_cast<float*>(row_.out)[c] = x;
      } else {
        static_cast<uint16_t*>(row_.out)[c] = dtype == DType::f16 ? Scalar::f32_to_f16(x) : Scalar::f32_to_bf16(x);
      }
    }
    if (row_.lse != nullptr) *row_.lse = static_cast<float>(lse);
  }

  const Problem& p_;
  const Tensors& t_;
  const int64_t index_;
  const Row& row_;
  const KeyRange keys_;
  int64_t offset_ = 0, q_ = 0, k_ = 0, v_ = 0;
  double slope_ = 0;
};

}  // namespace

void exact_row(const Problem& problem, const Tensors& tensors, const Sequence& sequence, int64_t sequence_index,
               const Row& row, DType out_dtype) {
  ExactRow(problem, tensors, sequence, sequence_index, row).run(out_dtype);
}

RowScales row_scales(float m, float l, float constant, const float* sink, bool with_lse) {
  constexpr double kLn2 = 0.693147180559945309417;
  const double top = static_cast<double>(m) + static_cast<double>(constant), sum = static_cast<double>(l);
  const double sink_octaves = sink == nullptr ? -kInfinity : static_cast<double>(*sink) / kLn2;
  if (l == 0) return {0, 0, static_cast<float>(sink_octaves * kLn2)};
  if (sink == nullptr && !with_lse) return {static_cast<float>(1 / sum), 1, 0};
  const double reference = sink_octaves > top ? sink_octaves : top;
  const double weight = std::exp2(top - reference), denominator = sum * weight + std::exp2(sink_octaves - reference);
  return {static_cast<float>(weight / denominator), static_cast<float>(sum * weight / denominator),
          static_cast<float>((reference + std::log2(denominator)) * kLn2)};
}

}  // namespace clary
