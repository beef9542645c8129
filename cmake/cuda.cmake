# The CUDA backend: one object library, a launch file per architecture (src/cuda/launch). Built when there is an nvcc
# of 12.4 or later. The runtime is linked statically and opens the driver's library by itself, so that the library
# loads and works on machines without one.
set(CLARY_CUDA AUTO CACHE STRING "CUDA kernels: AUTO (when nvcc is found), ON, OFF")
set_property(CACHE CLARY_CUDA PROPERTY STRINGS AUTO ON OFF)
set(CLARY_CUDA_OLDEST 12.4)

set(CLARY_HAS_CUDA OFF)
if(CLARY_CUDA STREQUAL "ON" OR (CLARY_CUDA STREQUAL "AUTO" AND NOT CLARY_SANITIZE AND NOT CMAKE_CROSSCOMPILING
    AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU"))
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES OFF)  # each launch file names its own
    if(CLARY_CCACHE)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CLARY_CCACHE})
    endif()
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know it of nvcc 13
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    find_package(CUDAToolkit REQUIRED)
  endif()
  if(CMAKE_CUDA_COMPILER AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL ${CLARY_CUDA_OLDEST})
    set(CLARY_HAS_CUDA ON)
  elseif(CLARY_CUDA STREQUAL "ON")
    message(FATAL_ERROR "CLARY_CUDA is ON, but there is no nvcc of ${CLARY_CUDA_OLDEST} or later")
  endif()
endif()
message(STATUS "CUDA kernels: ${CLARY_HAS_CUDA}")

if(NOT CLARY_HAS_CUDA)
  set(CLARY_CUDA_SOURCES ${PROJECT_SOURCE_DIR}/src/cuda/absent.cpp)
  return()
endif()
set(CLARY_CUDA_SOURCES ${PROJECT_SOURCE_DIR}/src/cuda/launch/backend.cpp)

add_library(clary_cuda_kernels OBJECT)
target_include_directories(clary_cuda_kernels PRIVATE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
# -Xptxas -v: registers and spills, which scripts/check_cuda_kernels.py compares with the budgets in the sources.
target_compile_options(clary_cuda_kernels PRIVATE -Xcompiler=-fvisibility=hidden,-Wall -Wno-deprecated-gpu-targets)
set_target_properties(clary_cuda_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_RUNTIME_LIBRARY Static)
function(clary_cuda_launch name)
  set(source ${PROJECT_SOURCE_DIR}/src/cuda/launch/${name}.cu)
  set(options)
  foreach(target ${ARGN})
    string(REGEX MATCH "[0-9]+a?" number ${target})
    list(APPEND options "-gencode=arch=compute_${number},code=${target}")
  endforeach()
  set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${options}")
  target_sources(clary_cuda_kernels PRIVATE ${source})
endfunction()
clary_cuda_launch(sm80 sm_80 sm_86)
clary_cuda_launch(sm89 sm_89)
clary_cuda_launch(sm90 sm_90a)
# PTX of 8.9 has all that these kernels use, and serves what lies between and what comes later.
clary_cuda_launch(sm120 sm_120 compute_89)
