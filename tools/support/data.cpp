#include "support/data.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace clary::support {
namespace {

constexpr double kPi = 3.14159265358979323846;
enum Stream : uint64_t { kQ = 1, kK, kV, kMask, kMaskValue, kSinks, kQChannels, kKChannels, kVChannels };

// The finaliser of splitmix64: a bijection whose output bits each depend on all input bits.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// What a data kind does to one channel: value = factor * n + offset, n of N(0, 1).
struct Channel {
  double factor = 1, offset = 0;
};

using ChannelRule = Channel (*)(const Problem&, const Random&, uint64_t head, int64_t channel, int64_t channels);

Channel rule_q(const Problem& problem, const Random& random, uint64_t head, int64_t channel, int64_t channels) {
  if (problem.data == Data::peaked) return {3, 0};
  if (problem.data == Data::constant) return {0, random.normal(head * 2048 + static_cast<uint64_t>(channel))};
  if (problem.data != Data::outliers) return {};
  const int64_t first = static_cast<int64_t>(random.bits(head) % static_cast<uint64_t>(channels));
  const int64_t second = (first + 1 + channels / 3) % channels;
  return {channel == first || channel == second ? 4.0 : 1.0, 0};
}

Channel rule_k(const Problem& problem, const Random& random, uint64_t head, int64_t channel, int64_t channels) {
  if (problem.data == Data::constant) return {0, random.normal(head * 2048 + static_cast<uint64_t>(channel))};
  if (problem.data != Data::outliers) return {};
  // 5 % of the channels, at least one, evenly spaced from a random start; offsets of 5 to 10, either sign.
  const int64_t count = std::max<int64_t>(1, (channels + 10) / 20);
  const int64_t start = static_cast<int64_t>(random.bits(head) % static_cast<uint64_t>(channels));
  const int64_t place = (channel - start + channels) % channels;
  if (place % (channels / count) != 0 || place / (channels / count) >= count) return {};
  const double u = random.uniform(head * 2048 + static_cast<uint64_t>(channel) + (uint64_t{1} << 40)) * 2 - 1;
  return {1, u < 0 ? 5 * u - 5 : 5 * u + 5};
}

Channel rule_v(const Problem& problem, const Random& random, uint64_t head, int64_t channel, int64_t) {
  const uint64_t index = head * 2048 + static_cast<uint64_t>(channel);
  if (problem.data == Data::constant) return {0, random.normal(index)};
  if (problem.data == Data::outliers) return {1, random.uniform(index) * 10 - 5};
  return {};
}

void fill(const Problem& problem, Tensor& tensor, bool query, Stream stream, Stream channel_stream, ChannelRule rule) {
  const bool varlen = !problem.lens_q.empty();
  const int64_t heads = query ? problem.heads_q : problem.heads_kv;
  const int64_t dim = tensor.shape()[3];
  const Random random(problem.seed, stream), channel_random(problem.seed, channel_stream);
  std::vector<Channel> channels(static_cast<size_t>(dim));
  int64_t first_row = 0;
  for (int64_t b = 0; b < problem.batch; ++b) {
    const int64_t length = query ? length_q(problem, b) : length_k(problem, b);
    for (int64_t h = 0; h < heads; ++h) {
      const uint64_t head = static_cast<uint64_t>(b * heads + h);
      for (int64_t d = 0; d < dim; ++d) channels[static_cast<size_t>(d)] = rule(problem, channel_random, head, d, dim);
      for (int64_t t = 0; t < length; ++t) {
        // 2^20 tokens per head and 1024 channels are more than the tests and benchmarks use.
        const uint64_t row = (head << 30) + (static_cast<uint64_t>(t) << 10);
        const int64_t token = varlen ? first_row + t : t, at = varlen ? 0 : b;
        for (int64_t d = 0; d < dim; d += 2) {
          double pair[2];
          random.normal_pair(row + static_cast<uint64_t>(d), pair);
          for (int64_t e = d; e < std::min(d + 2, dim); ++e) {
            const Channel& c = channels[static_cast<size_t>(e)];
            const double value = c.factor * pair[e - d] + c.offset;
            if (problem.layout == CLARY_BHSD)
              tensor.set(at, h, token, e, value);
            else
              tensor.set(at, token, h, e, value);
          }
        }
      }
    }
    first_row += length;
  }
}

// Visible keys of each (row of blocks): exactly the asked share of the key blocks, drawn without replacement.
constexpr int64_t kBlockRows = 128, kBlockKeys = 256;

void fill_block_mask(const Problem& problem, Tensor& mask) {
  const Random random(problem.seed, kMask);
  const auto& s = mask.shape();
  const int64_t blocks = (s[3] + kBlockKeys - 1) / kBlockKeys, block_rows = (s[2] + kBlockRows - 1) / kBlockRows;
  const int64_t keep = std::llround(problem.mask_keep * static_cast<double>(blocks));
  std::vector<int64_t> order(static_cast<size_t>(blocks));
  for (int64_t b = 0; b < s[0]; ++b)
    for (int64_t h = 0; h < s[1]; ++h)
      for (int64_t r = 0; r < block_rows; ++r) {
        const uint64_t row = static_cast<uint64_t>(((b * s[1] + h) * block_rows + r) * blocks);
        std::iota(order.begin(), order.end(), int64_t{0});
        std::sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
          return random.bits(row + static_cast<uint64_t>(x)) < random.bits(row + static_cast<uint64_t>(y));
        });
        for (int64_t n = 0; n < keep; ++n)
          for (int64_t i = r * kBlockRows; i < std::min(s[2], (r + 1) * kBlockRows); ++i)
            for (int64_t first = order[static_cast<size_t>(n)] * kBlockKeys, j = first; j < first + kBlockKeys; ++j)
              if (j < s[3]) mask.set(b, h, i, j, 1);
      }
}

void fill_key_padding(const Problem& problem, Tensor& mask) {
  const Random random(problem.seed, kMask);
  for (int64_t b = 0; b < mask.shape()[0]; ++b) {
    // The first entry keeps exactly the asked share, the others half to one and a half times as much.
    const double factor = b == 0 ? 1 : 0.5 + random.uniform(static_cast<uint64_t>(b));
    const int64_t length = length_k(problem, b);
    const int64_t asked = std::llround(problem.mask_keep * factor * static_cast<double>(length));
    const int64_t visible = std::min(length, asked);
    for (int64_t j = 0; j < visible; ++j) mask.set(b, 0, 0, j, 1);
  }
}

}  // namespace

uint16_t f16_from_float(float value) {
  const uint32_t x = std::bit_cast<uint32_t>(value), sign = (x >> 16) & 0x8000u;
  uint32_t a = x & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (a >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (a < 0x38800000u) {  // subnormal: the unit in the last place of 0.5f is the quantum, 2^-24
    const float shifted = std::bit_cast<float>(a) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f)));
  }
  a += 0xfffu + ((a >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((a - (112u << 23)) >> 13));
}

float float_from_f16(uint16_t bits) {
  const uint32_t exponent = (bits >> 10) & 31u, mantissa = bits & 1023u;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  const uint32_t subnormal = std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24f);
  if (exponent == 0) return std::bit_cast<float>(sign | subnormal);
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t bf16_from_float(float value) {
  const uint32_t x = std::bit_cast<uint32_t>(value);
  if ((x & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((x >> 16) | 0x40u);
  return static_cast<uint16_t>((x + 0x7fffu + ((x >> 16) & 1u)) >> 16);
}

float float_from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

Random::Random(uint64_t seed, uint64_t stream) : key_(mix(mix(seed) + stream)) {}

uint64_t Random::bits(uint64_t index) const { return mix(key_ ^ mix(index)); }

double Random::uniform(uint64_t index) const { return static_cast<double>(bits(index) >> 11) * 0x1p-53; }

void Random::normal_pair(uint64_t index, double* pair) const {
  const uint64_t x = bits(index);
  // Box-Muller on (0, 1] x [0, 1), 32 bits each: the largest magnitude is sqrt(64 ln 2) = 6.66.
  const double radius = std::sqrt(-2 * std::log((static_cast<double>(x >> 32) + 1) * 0x1p-32));
  const double angle = 2 * kPi * static_cast<double>(x & 0xffffffffu) * 0x1p-32;
  pair[0] = radius * std::cos(angle);
  pair[1] = radius * std::sin(angle);
}

double Random::normal(uint64_t index) const {
  double pair[2];
  normal_pair(index, pair);
  return pair[0];
}

void fill_q(const Problem& problem, Tensor& q) { fill(problem, q, true, kQ, kQChannels, rule_q); }
void fill_k(const Problem& problem, Tensor& k) { fill(problem, k, false, kK, kKChannels, rule_k); }
void fill_v(const Problem& problem, Tensor& v) { fill(problem, v, false, kV, kVChannels, rule_v); }

void fill_mask(const Problem& problem, Tensor& mask) {
  if (problem.mask == MaskKind::key_padding) return fill_key_padding(problem, mask);
  if (problem.mask == MaskKind::block) return fill_block_mask(problem, mask);
  const Random keep(problem.seed, kMask), value(problem.seed, kMaskValue);
  const bool additive = problem.mask == MaskKind::additive;
  const auto& s = mask.shape();
  uint64_t index = 0;
  for (int64_t b = 0; b < s[0]; ++b)
    for (int64_t h = 0; h < s[1]; ++h)
      for (int64_t i = 0; i < s[2]; ++i)
        for (int64_t j = 0; j < s[3]; ++j, ++index) {
          const bool visible = keep.uniform(index) < problem.mask_keep;
          constexpr double kHidden = -std::numeric_limits<double>::infinity();
          if (additive)
            mask.set(b, h, i, j, visible ? value.normal(index) : kHidden);
          else
            mask.set(b, h, i, j, visible ? 1 : 0);
        }
}

void fill_alibi_slopes(Tensor& slopes) {
  const int64_t heads = slopes.shape().back();
  for (int64_t h = 0; h < heads; ++h)
    slopes.set(0, 0, 0, h, std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)));
}

void fill_sinks(const Problem& problem, Tensor& sinks) {
  const Random random(problem.seed, kSinks);
  for (int64_t h = 0; h < sinks.shape()[0]; ++h) sinks.set(0, 0, 0, h, random.normal(static_cast<uint64_t>(h)));
}

}  // namespace clary::support
