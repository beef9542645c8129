#include "cpu/isa/avx2.h"
#include "isa/operations.h"
#include "isa/vocabularies.h"

namespace clary::test {

Vocabulary vocabulary_avx2() { return make_vocabulary<Avx2>(); }

}  // namespace clary::test
