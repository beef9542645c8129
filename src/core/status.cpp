#include "core/status.h"

#include <cstdarg>
#include <cstdio>

namespace clary {
namespace {
thread_local char error_text[512] = "";
}

clary_status fail(clary_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(error_text, sizeof error_text, format, arguments);
  va_end(arguments);
  return status;
}

void clear_error() { error_text[0] = '\0'; }
const char* last_error() { return error_text; }

}  // namespace clary
