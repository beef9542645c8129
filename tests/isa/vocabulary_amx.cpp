#include "cpu/isa/amx.h"
#include "isa/operations.h"
#include "isa/vocabularies.h"

namespace clary::test {

Vocabulary vocabulary_amx() { return make_vocabulary<Amx>(); }
bool request_amx() { return Amx::request_permission(); }

}  // namespace clary::test
