// The vocabularies under test: one translation unit each, with the compile flags of its kernels. A unit may be called
// only on a CPU that has its instruction set.
#pragma once

#include "isa/operations.h"

namespace clary::test {

Vocabulary vocabulary_scalar();  // Scalar with tiles: the reference
#if defined(__x86_64__)
Vocabulary vocabulary_avx2();
Vocabulary vocabulary_avxvnni();
Vocabulary vocabulary_avx512vnni();
Vocabulary vocabulary_avx512bf16();
Vocabulary vocabulary_amx();
bool request_amx();
#elif defined(__aarch64__)
Vocabulary vocabulary_neon();
Vocabulary vocabulary_i8mm();
#endif

}  // namespace clary::test
