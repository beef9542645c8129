#include "problem/problem.h"

#include <algorithm>

#include "cpu/isa/scalar.h"

namespace clary {

const char* name(Precision precision) {
  static constexpr const char* kNames[kPrecisions] = {"exact", "bf16", "int8_f16", "int8", "int4", "auto", "bf16x3"};
  return kNames[static_cast<int>(precision)];
}

double element(const void* data, DType dtype, int64_t index) {
  const auto* half = static_cast<const uint16_t*>(data);
  switch (dtype) {
    case DType::f32: return static_cast<const float*>(data)[index];
    case DType::f16: return Scalar::f16_to_f32(half[index]);
    case DType::bf16: return std::bit_cast<float>(static_cast<uint32_t>(half[index]) << 16);
    case DType::boolean: return static_cast<const uint8_t*>(data)[index] != 0 ? 1 : 0;
  }
  return 0;
}

Sequence Problem::sequence(int64_t s) const {
  if (cu_seqlens_q == nullptr) return {s, 0, 0, len_q, len_k};
  const int64_t q0 = cu_seqlens_q[s], k0 = cu_seqlens_k[s];
  return {0, q0, k0, cu_seqlens_q[s + 1] - q0, cu_seqlens_k[s + 1] - k0};
}

int64_t Problem::offset(const Sequence& s) const {
  switch (causal) {
    case CLARY_CAUSAL_TOP_LEFT: return 0;
    case CLARY_CAUSAL_OFFSET: return causal_offset;
    case CLARY_NOT_CAUSAL:
    case CLARY_CAUSAL_BOTTOM_RIGHT: return s.len_k - s.len_q;
  }
  return 0;
}

KeyRange Problem::visible_keys(const Sequence& s, int64_t i) const {
  KeyRange range{0, s.len_k};
  const int64_t aligned = i + offset(s);
  if (causal != CLARY_NOT_CAUSAL) range.end = std::min(range.end, aligned + 1);
  if (window_left >= 0) range.begin = std::max(range.begin, aligned - window_left);
  if (window_right >= 0) range.end = std::min(range.end, aligned + window_right + 1);
  if (range.begin >= range.end) return {0, 0};
  return range;
}

bool Problem::mask_shows(int64_t s, int64_t head, int64_t i, int64_t j) const {
  switch (mask.kind) {
    case Mask::Kind::none: return true;
    case Mask::Kind::boolean:
      return static_cast<const uint8_t*>(
                 mask.data)[s * mask.batch + head * mask.head + i * mask.query + j * mask.key] != 0;
    case Mask::Kind::additive: return mask_value(s, head, i, j) != -std::numeric_limits<double>::infinity();
  }
  return true;
}

void Problem::find_hidden_keys(int64_t s, int64_t head_kv, int64_t first, int64_t step, int count, bool* hidden) const {
  std::fill_n(hidden, count, true);
  for (int64_t g = 0; g < (mask.head == 0 ? 1 : group); ++g) {
    const int64_t head = head_kv * group + g;
    if (mask.kind == Mask::Kind::boolean) {
      const auto* shown = static_cast<const uint8_t*>(mask.data) + s * mask.batch + head * mask.head + first * mask.key;
      for (int i = 0; i < count; ++i) hidden[i] = hidden[i] && shown[i * step * mask.key] == 0;
    } else {
      for (int i = 0; i < count; ++i) hidden[i] = hidden[i] && !mask_shows(s, head, 0, first + i * step);
    }
  }
}

double Problem::mask_value(int64_t s, int64_t head, int64_t i, int64_t j) const {
  if (mask.kind != Mask::Kind::additive) return 0;
  return element(mask.data, mask.dtype, s * mask.batch + head * mask.head + i * mask.query + j * mask.key);
}

double Problem::alibi_slope(int64_t s, int64_t head) const {
  return alibi_slopes == nullptr ? 0 : static_cast<double>(alibi_slopes[s * alibi_batch + head * alibi_head]);
}

}  // namespace clary
