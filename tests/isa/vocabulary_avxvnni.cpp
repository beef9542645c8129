#include "cpu/isa/avx2.h"
#include "isa/operations.h"
#include "isa/vocabularies.h"

namespace clary::test {

Vocabulary vocabulary_avxvnni() { return make_vocabulary<AvxVnni>(); }

}  // namespace clary::test
