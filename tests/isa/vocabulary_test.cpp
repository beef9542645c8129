// Every instruction set against the executable specification, operation by operation and bit by bit.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "isa/vocabularies.h"
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace clary::test {
namespace {

// ---- operands

class Operands {
 public:
  // `in`: operation.operands vectors. `round` numbers the calls: domains that are walked through
  // advance by 8 words, which is as much as every operation reads.
  void fill(const Operation& operation, int round, uint8_t* in) {
    const int words = operation.operands * kVectorBytes / 4, first = (operation.operands + 2) / 3 * kVectorBytes / 4;
    for (int i = 0; i < words; ++i) {
      const uint32_t x = word(operation.domain, i < first, static_cast<uint32_t>(8 * round + i));
      std::memcpy(in + 4 * i, &x, 4);
    }
  }

 private:
  uint32_t random() { return static_cast<uint32_t>(generator_()); }
  float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator_); }

  uint32_t bits() {  // every other one of extreme bytes: saturation and signs
    if (random() & 1) return random();
    constexpr uint8_t kExtremes[8] = {0, 1, 0x7f, 0x80, 0x81, 0xff, 0xff, 0x80};
    uint32_t x = 0;
    for (int i = 0; i < 4; ++i) x = x << 8 | kExtremes[random() % 8];
    return x;
  }
  float any_float() {
    constexpr float kInf = std::numeric_limits<float>::infinity();
    constexpr float kSpecial[] = {0.0f,       -0.0f,        1.0f,         -1.0f,    kInf,         -kInf,     0x1p-149f,
                                  -0x1p-126f, 0x1p-14f,     0x1p-24f,     0x1p-25f, 0x1.8p-25f,   65504.0f,  65519.996f,
                                  65520.0f,   0x1.ffcp-15f, 0x1.ffep-15f, 3.4e38f,  0x1.ff8p127f, 0x1.01p0f, 0x1.03p0f};
    switch (random() % 4) {
      case 0: return kSpecial[random() % std::size(kSpecial)];
      case 1: return std::bit_cast<float>(random());
      case 2: return std::ldexp(uniform(-1, 1), static_cast<int>(random() % 48) - 30);  // the range of halves
      default: return uniform(-2, 2);
    }
  }
  float number() {
    float x;
    do x = any_float();
    while (std::isnan(x));
    return x;
  }
  float exponent() {
    constexpr float kSpecial[] = {0.0f,
                                  -0.0f,
                                  -125.0f,
                                  -125.00001f,
                                  126.0f,
                                  -0.5f,
                                  0.5f,
                                  -124.5f,
                                  125.5f,
                                  1e-30f,
                                  -std::numeric_limits<float>::infinity(),
                                  -3e38f,
                                  -126.5f,
                                  -1.5f,
                                  -2.5f};
    switch (random() % 4) {
      case 0: return kSpecial[random() % std::size(kSpecial)];
      case 1: return uniform(-130, 126);
      default: return uniform(-20, 1);
    }
  }
  float to_i32() {
    constexpr float kSpecial[] = {0.5f,           1.5f,       2.5f,
                                  -0.5f,          -1.5f,      2147483520.0f,
                                  -2147483648.0f, -1e30f,     -std::numeric_limits<float>::infinity(),
                                  8388609.0f,     4194304.5f, -0.0f};
    switch (random() % 3) {
      case 0: return kSpecial[random() % std::size(kSpecial)];
      case 1: return uniform(-300, 300);
      default: return uniform(-2147483520.0f, 2147483520.0f);
    }
  }
  float small() {  // less than 32768 when it is rounded
    const float x = uniform(-32767, 32767);
    return random() & 1 ? x : std::floor(x) + 0.5f;
  }
  uint32_t bf16() {
    return std::bit_cast<uint32_t>(std::ldexp(uniform(-1, 1), static_cast<int>(random() % 9) - 4)) >> 16;
  }

  // `pattern` followed by `bits` more: none, around the half of a unit, or any
  uint32_t extend(uint32_t pattern, int bits) {
    const uint32_t half = 1u << (bits - 1), low[] = {0, 1, half - 1, half, half + 1, 2 * half - 1, random() % half};
    return pattern << bits | low[random() % std::size(low)];
  }
  float near_half(uint32_t pattern) {  // 65536 to 131008 instead of infinity and NaN
    const float magnitude = std::bit_cast<float>(extend(pattern & 0x7fff, 13)) * 0x1p112f;
    return pattern & 0x8000 ? -magnitude : magnitude;
  }

  // The 32 bits at an operand's place; `index` counts the words of a domain that is walked through.
  uint32_t word(Domain domain, bool first, uint32_t index) {
    switch (domain) {
      case Domain::kFloats: return std::bit_cast<uint32_t>(number());
      case Domain::kAllFloats: return std::bit_cast<uint32_t>(any_float());
      case Domain::kHalves: return (2 * index & 0xffff) | (2 * index + 1) << 16;
      case Domain::kNearHalves: return std::bit_cast<uint32_t>(near_half(index & 0xffff));
      case Domain::kNearBf16: return extend(index & 0xffff, 16);
      case Domain::kExp2: return std::bit_cast<uint32_t>(exponent());
      case Domain::kToI32: return std::bit_cast<uint32_t>(to_i32());
      case Domain::kBf16Exact: return bf16() << 16;
      case Domain::kSums: return first ? random() % (1u << 27) - (1u << 26) : bits();
      case Domain::kBf16Pairs: return first ? std::bit_cast<uint32_t>(uniform(-4, 4)) : bf16() << 16 | bf16();
      case Domain::kSmall: return std::bit_cast<uint32_t>(small());
      case Domain::kExponents: return 2 * index % 1024 | (2 * index + 1) % 1024 << 16;
      default: return bits();
    }
  }

  std::mt19937 generator_{20240229};
};

// ---- comparison

float float_at(const uint8_t* p, int lane) {
  float x;
  std::memcpy(&x, p + 4 * lane, 4);
  return x;
}

double bf16_product(const uint8_t* a, const uint8_t* b, int lane_a, int lane_b, int half) {
  auto value = [half](uint32_t word) { return std::bit_cast<float>(half ? word & 0xffff0000u : word << 16); };
  return static_cast<double>(value(std::bit_cast<uint32_t>(float_at(a, lane_a)))) *
         static_cast<double>(value(std::bit_cast<uint32_t>(float_at(b, lane_b))));
}

struct Sum {
  double value = 0, magnitude = 0;
  void add(double x) { value += x, magnitude += std::fabs(x); }
};

// Lane `lane` of a dot2 (3 operands) or of a product of tiles (48), in double precision.
Sum exact_dot2(const Operation& operation, const uint8_t* in, int lane) {
  const uint8_t* a = in + operation.operands / 3 * kVectorBytes;
  const uint8_t* b = a + operation.operands / 3 * kVectorBytes;
  const bool tiles = operation.operands > 3;
  Sum sum;
  sum.add(float_at(in, lane));
  for (int k = 0; k < (tiles ? 16 : 1); ++k)
    for (int half = 0; half < 2; ++half)
      sum.add(bf16_product(a, b, tiles ? lane / 16 * 16 + k : lane, tiles ? 16 * k + lane % 16 : lane, half));
  return sum;
}

bool lanes_agree(Result result, float x, float y) {
  if (result == Result::kValue) return x == y;
  return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y) || (std::isnan(x) && std::isnan(y));
}

// Empty, or what differs.
std::string difference(const Operation& operation, const uint8_t* in, const uint8_t* got, const uint8_t* expected) {
  if (operation.result == Result::kExact) {
    for (int i = 0; i < operation.result_bytes; ++i)
      if (got[i] != expected[i])
        return "byte " + std::to_string(i) + ": " + std::to_string(got[i]) + " instead of " +
               std::to_string(expected[i]);
    return "";
  }
  for (int lane = 0; lane < operation.result_bytes / 4; ++lane) {
    const float x = float_at(got, lane), y = float_at(expected, lane);
    if (operation.result == Result::kNear) {
      const double bound = 0x1p-22 * exact_dot2(operation, in, lane).magnitude;  // 2 units in its last place
      if (std::fabs(static_cast<double>(x) - static_cast<double>(y)) <= bound) continue;
    } else if (lanes_agree(operation.result, x, y)) {
      continue;
    }
    return "lane " + std::to_string(lane) + ": " + std::to_string(x) + " instead of " + std::to_string(y);
  }
  return "";
}

// ---- which sets this CPU has; an empty string or what is missing

#if defined(__x86_64__)
std::string cpuid_lacks(unsigned subleaf, int reg, unsigned mask, const char* what) {
  unsigned r[4] = {};
  const bool known = __get_cpuid_count(7, subleaf, &r[0], &r[1], &r[2], &r[3]);
  return known && (r[reg] & mask) == mask ? "" : what;
}
[[maybe_unused]] std::string lacks_avx2() {
  const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  unsigned a, b, c = 0, d;
  return has && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) ? "" : "AVX2, FMA and F16C";
}
[[maybe_unused]] std::string lacks_avxvnni() {
  const std::string avx2 = lacks_avx2();
  return avx2.empty() ? cpuid_lacks(1, 0, 1u << 4, "AVX-VNNI") : avx2;
}
[[maybe_unused]] std::string lacks_avx512vnni() {
  const bool has = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  return has ? "" : "AVX-512 with BW, DQ, VL and VNNI";
}
[[maybe_unused]] std::string lacks_avx512bf16() {
  const std::string vnni = lacks_avx512vnni();
  return vnni.empty() ? cpuid_lacks(1, 0, 1u << 5, "AVX512-BF16") : vnni;
}
#ifdef CLARY_HAS_AMX
std::string lacks_amx() {
  std::string missing = lacks_avx512bf16();
  if (missing.empty()) missing = cpuid_lacks(0, 3, 1u << 22 | 1u << 24 | 1u << 25, "AMX with BF16 and INT8");
  if (missing.empty()) missing = cpuid_lacks(0, 2, 1u << 1, "AVX512-VBMI");
  return missing.empty() && !request_amx() ? "the kernel's permission to use AMX" : missing;
}
#endif
#elif defined(__aarch64__)
[[maybe_unused]] std::string lacks_neon() {
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? "" : "dot products (asimddp)";
}
[[maybe_unused]] std::string lacks_i8mm() {
  const unsigned long needed = HWCAP2_I8MM | HWCAP2_BF16;
  return (getauxval(AT_HWCAP2) & needed) == needed ? lacks_neon() : "i8mm and bf16";
}
#endif

// ---- tests

struct Set {
  const char* name;
  Vocabulary (*vocabulary)();
  std::string (*missing)();

  friend void PrintTo(const Set& set, std::ostream* out) { *out << set.name; }
};

const std::vector<Set> kSets = {
#ifdef CLARY_HAS_AVX2
    {"avx2", vocabulary_avx2, lacks_avx2},
#endif
#ifdef CLARY_HAS_AVXVNNI
    {"avxvnni", vocabulary_avxvnni, lacks_avxvnni},
#endif
#ifdef CLARY_HAS_AVX512VNNI
    {"avx512vnni", vocabulary_avx512vnni, lacks_avx512vnni},
#endif
#ifdef CLARY_HAS_AVX512BF16
    {"avx512bf16", vocabulary_avx512bf16, lacks_avx512bf16},
#endif
#ifdef CLARY_HAS_AMX
    {"amx", vocabulary_amx, lacks_amx},
#endif
#ifdef CLARY_HAS_NEON
    {"neon", vocabulary_neon, lacks_neon},
#endif
#ifdef CLARY_HAS_I8MM
    {"i8mm", vocabulary_i8mm, lacks_i8mm},
#endif
};

const Operation* find(const Vocabulary& vocabulary, const std::string& name) {
  for (int i = 0; i < vocabulary.count; ++i)
    if (vocabulary.operations[i].name == name) return &vocabulary.operations[i];
  return nullptr;
}

// Memory of an operation: aligned to 4 bytes and no more; results lie between bytes that must stay.
struct Memory {
  static constexpr int kMargin = 64;
  alignas(64) uint8_t in[4 + kMaxVectors * kVectorBytes + kVectorBytes] = {};
  alignas(64) uint8_t out[4 + kMaxVectors * kVectorBytes + kMargin];

  const uint8_t* run(const Operation& operation) {
    std::memset(out, 0xa5, sizeof out);
    operation.run(in + 4, out + 4);
    return out + 4;
  }
  bool wrote_outside(const Operation& operation) const {
    for (int i = 0; i < 4; ++i)
      if (out[i] != 0xa5) return true;
    for (int i = 0; i < kMargin; ++i)
      if (out[4 + operation.result_bytes + i] != 0xa5) return true;
    return false;
  }
};

int rounds(const Operation& operation) {
  if (operation.operands > 16) return 32;
  if (operation.domain == Domain::kHalves) return 65536 / 16;
  if (operation.domain == Domain::kNearHalves || operation.domain == Domain::kNearBf16) return 65536 / 8;
  return 1000;
}

class VocabularyTest : public testing::TestWithParam<Set> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(VocabularyTest);

TEST_P(VocabularyTest, EqualsSpecification) {
  const std::string missing = GetParam().missing();
  if (!missing.empty()) GTEST_SKIP() << "this CPU lacks " << missing;
  const Vocabulary tested = GetParam().vocabulary(), reference = vocabulary_scalar();
  EXPECT_STREQ(tested.name, GetParam().name);
  EXPECT_GE(tested.count, 60);
  Memory memory, expected;
  for (int i = 0; i < tested.count; ++i) {
    const Operation& operation = tested.operations[i];
    const Operation* specification = find(reference, operation.name);
    ASSERT_NE(specification, nullptr) << operation.name;
    Operands operands;
    for (int round = 0; round < rounds(operation); ++round) {
      operands.fill(operation, round, memory.in + 4);
      std::memcpy(expected.in, memory.in, sizeof memory.in);
      const uint8_t* want = expected.run(*specification);
      const uint8_t* got = memory.run(operation);
      const std::string wrong = difference(operation, memory.in + 4, got, want);
      EXPECT_EQ(wrong, "") << operation.name << ", round " << round;
      EXPECT_FALSE(memory.wrote_outside(operation)) << operation.name;
      if (HasFailure()) break;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, VocabularyTest, testing::ValuesIn(kSets),
                         [](const auto& set) { return std::string(set.param.name); });

// ---- the reference's tiles against products written out

// B: the type of the second operand's bytes.
template <class B>
void expect_products_of_bytes(const char* name) {
  const Vocabulary reference = vocabulary_scalar();
  const Operation* operation = find(reference, name);
  ASSERT_NE(operation, nullptr);
  Memory memory;
  Operands().fill(*operation, 0, memory.in + 4);
  const uint8_t *c = memory.in + 4, *a = c + 1024, *b = a + 1024, *got = memory.run(*operation);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      int32_t sum;
      std::memcpy(&sum, c + 64 * m + 4 * n, 4);
      for (int k = 0; k < 64; ++k)
        sum += static_cast<int8_t>(a[64 * m + k]) * static_cast<B>(b[64 * (k / 4) + 4 * n + k % 4]);
      EXPECT_EQ(std::bit_cast<int32_t>(float_at(got, 16 * m + n)), sum) << m << ", " << n;
    }
}

TEST(EmulatedTiles, SignedBytes) { expect_products_of_bytes<int8_t>("tile_dot4_ss"); }
TEST(EmulatedTiles, SignedByUnsignedBytes) { expect_products_of_bytes<uint8_t>("tile_dot4_su"); }

TEST(EmulatedTiles, Bf16) {
  const Vocabulary reference = vocabulary_scalar();
  const Operation* operation = find(reference, "tile_dot2");
  ASSERT_NE(operation, nullptr);
  Memory memory;
  Operands().fill(*operation, 0, memory.in + 4);
  const uint8_t* got = memory.run(*operation);
  for (int lane = 0; lane < 256; ++lane) {
    const Sum exact = exact_dot2(*operation, memory.in + 4, lane);
    EXPECT_NEAR(float_at(got, lane), exact.value, 18 * 0x1p-24 * exact.magnitude) << lane;  // 16 + 2 roundings
  }
}

// C[0][0] of one tile_dot2 whose operands are zero but for these pairs (low, high) in row 0 of A and column 0 of B.
struct Pair {
  float low, high;
};
float dot2_of(float c, const std::vector<Pair>& a, Pair b) {
  const Vocabulary reference = vocabulary_scalar();
  const Operation* operation = find(reference, "tile_dot2");
  auto pair = [](Pair x) {
    return std::bit_cast<uint32_t>(x.low) >> 16 | (std::bit_cast<uint32_t>(x.high) & 0xffff0000u);
  };
  Memory memory;
  std::memcpy(memory.in + 4, &c, 4);
  for (size_t k = 0; k < a.size(); ++k) {
    const uint32_t x = pair(a[k]), y = pair(b);
    std::memcpy(memory.in + 4 + 1024 + 4 * k, &x, 4);
    std::memcpy(memory.in + 4 + 2048 + 64 * k, &y, 4);
  }
  return float_at(memory.run(*operation), 0);
}

TEST(EmulatedTiles, Bf16SumsLowAndHighProductsApart) {
  // One by one, each 1 would be lost beside 2^24.
  EXPECT_EQ(dot2_of(0, {{0x1p24f, 1}, {0, 1}}, {1, 1}), 0x1p24f + 2);
  EXPECT_EQ(dot2_of(1, {{0x1p24f, 1}}, {1, 1}), 0x1p24f);
}

TEST(EmulatedTiles, Bf16FlushesDenormals) {
  EXPECT_EQ(dot2_of(0, {{0x1p-127f, 0}}, {0x1p100f, 0}), 0);
  EXPECT_EQ(dot2_of(0, {{0x1p-126f, 0}}, {0x1p100f, 0}), 0x1p-26f);
  EXPECT_EQ(dot2_of(0, {{0x1p-100f, 0}}, {0x1p-30f, 0}), 0);
  EXPECT_EQ(dot2_of(0x1p-130f, {}, {0, 0}), 0);
}

}  // namespace
}  // namespace clary::test
