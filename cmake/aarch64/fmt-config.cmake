# {fmt} as headers: the library that Debian installs is for the build machine.
add_library(fmt::fmt INTERFACE IMPORTED)
target_compile_definitions(fmt::fmt INTERFACE FMT_HEADER_ONLY)
add_library(fmt::fmt-header-only ALIAS fmt::fmt)
