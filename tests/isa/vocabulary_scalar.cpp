#include "cpu/isa/amx_emulated.h"
#include "isa/operations.h"
#include "isa/vocabularies.h"

namespace clary::test {

Vocabulary vocabulary_scalar() { return make_vocabulary<AmxEmulated>(); }

}  // namespace clary::test
