#include "cpu/isa/neon.h"
#include "isa/operations.h"
#include "isa/vocabularies.h"

namespace clary::test {

Vocabulary vocabulary_neon() { return make_vocabulary<Neon>(); }

}  // namespace clary::test
