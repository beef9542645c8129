file(GLOB CLARY_SOURCES CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/src/core/*.cpp ${PROJECT_SOURCE_DIR}/src/problem/*.cpp ${PROJECT_SOURCE_DIR}/src/quant/*.cpp
  ${PROJECT_SOURCE_DIR}/src/plan/*.cpp ${PROJECT_SOURCE_DIR}/src/kernel/*.cpp ${PROJECT_SOURCE_DIR}/src/api/*.cpp
  ${PROJECT_SOURCE_DIR}/src/cuda/host/*.cpp)

# The objects, once: the shared library and the tests (which look inside) are both made of them.
add_library(clary_objects STATIC ${CLARY_SOURCES} ${CLARY_CUDA_SOURCES} ${PROJECT_SOURCE_DIR}/src/cpu/dispatch.cpp ${CLARY_KERNEL_SOURCES})
target_include_directories(clary_objects PUBLIC ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
target_compile_definitions(clary_objects PRIVATE CLARY_BUILD)
set_source_files_properties(${PROJECT_SOURCE_DIR}/src/cpu/dispatch.cpp PROPERTIES COMPILE_DEFINITIONS "${CLARY_KERNEL_DEFINITIONS}")
target_link_libraries(clary_objects PUBLIC Threads::Threads PRIVATE clary_warnings)
if(CLARY_HAS_CUDA)
  target_link_libraries(clary_objects PUBLIC clary_cuda_kernels $<TARGET_OBJECTS:clary_cuda_kernels> CUDA::cudart_static)
endif()

add_library(clary SHARED $<TARGET_OBJECTS:clary_objects>)
add_library(clary::clary ALIAS clary)
target_link_libraries(clary PRIVATE Threads::Threads)
if(CLARY_HAS_CUDA)
  target_link_libraries(clary PRIVATE $<TARGET_OBJECTS:clary_cuda_kernels> CUDA::cudart_static)
endif()
target_link_options(clary PRIVATE -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/clary.map)
target_include_directories(clary PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
set_target_properties(clary PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR} LINKER_LANGUAGE CXX
  LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/clary.map)
