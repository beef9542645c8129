# clary_warnings: what every target of this project compiles with.
add_library(clary_warnings INTERFACE)
target_compile_options(clary_warnings INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor $<$<BOOL:${CLARY_WERROR}>:-Werror>)
