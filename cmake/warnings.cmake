# clary_warnings: what every target of this project compiles with.
add_library(clary_warnings INTERFACE)
target_compile_options(clary_warnings INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor
  $<$<BOOL:${CLARY_WERROR}>:-Werror>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # Reports std::string's own copies as overlapping (GCC bug 105651).
  target_compile_options(clary_warnings INTERFACE -Wno-restrict)
endif()
if(CLARY_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # Instrumented code of the standard library's <regex> looks uninitialised to g++ 12.
  target_compile_options(clary_warnings INTERFACE -Wno-maybe-uninitialized)
endif()
