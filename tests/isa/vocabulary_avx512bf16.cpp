#include "cpu/isa/avx512.h"
#include "isa/operations.h"
#include "isa/vocabularies.h"

namespace clary::test {

Vocabulary vocabulary_avx512bf16() { return make_vocabulary<Avx512Bf16>(); }

}  // namespace clary::test
