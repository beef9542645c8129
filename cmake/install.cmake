# What `cmake --install` writes: one shared library, the headers, the CMake and pkg-config packages. The command
# is installed where it is defined, in tools/.
include(CMakePackageConfigHelpers)
set(CLARY_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/clary)

install(TARGETS clary EXPORT clary-targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/clary/clary.h include/clary/clary.hpp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/clary)
install(EXPORT clary-targets NAMESPACE clary:: DESTINATION ${CLARY_CMAKE_DIR})

configure_package_config_file(cmake/clary-config.cmake.in ${PROJECT_BINARY_DIR}/clary-config.cmake
  INSTALL_DESTINATION ${CLARY_CMAKE_DIR} NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
# Before 1.0 every minor version may change the interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/clary-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/clary-config.cmake ${PROJECT_BINARY_DIR}/clary-config-version.cmake
  DESTINATION ${CLARY_CMAKE_DIR})

configure_file(cmake/clary.pc.in ${PROJECT_BINARY_DIR}/clary.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/clary.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
