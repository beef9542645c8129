# What a Python wheel holds beside the package's sources: the shared library, as one file. Wheels have no symbolic links,
# so it carries no version in its name; the C++ runtime is part of it, so that the oldest one of any host will do.
set_target_properties(clary PROPERTIES VERSION "" SOVERSION "" NO_SONAME ON)
target_link_options(clary PRIVATE -static-libstdc++ -static-libgcc)
install(TARGETS clary LIBRARY DESTINATION clary)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/bench/problems DESTINATION clary)  # what `python -m clary bench` measures
