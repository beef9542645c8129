// Errors: a status code travels up, the reason waits in a thread-local buffer for clary_last_error().
#pragma once

#include "clary/clary.h"

namespace clary {

// Records the printf-formatted reason and returns `status`. Allocates nothing.
[[nodiscard, gnu::format(printf, 2, 3)]] clary_status fail(clary_status status, const char* format, ...);

void clear_error();
const char* last_error();

// Returns from the enclosing function when `expression` is not CLARY_OK.
#define CLARY_TRY(expression)                            \
  do {                                                   \
    const clary_status status_of_try = (expression);     \
    if (status_of_try != CLARY_OK) return status_of_try; \
  } while (false)

}  // namespace clary
