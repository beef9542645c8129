#include "cpu/isa/avx512.h"
#include "isa/operations.h"
#include "isa/vocabularies.h"

namespace clary::test {

Vocabulary vocabulary_avx512vnni() { return make_vocabulary<Avx512Vnni>(); }

}  // namespace clary::test
