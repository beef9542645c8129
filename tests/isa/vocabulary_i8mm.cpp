#include "cpu/isa/neon.h"
#include "isa/operations.h"
#include "isa/vocabularies.h"

namespace clary::test {

Vocabulary vocabulary_i8mm() { return make_vocabulary<I8mm>(); }

}  // namespace clary::test
