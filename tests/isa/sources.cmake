# CLARY_ISA_TEST_SOURCES: the vocabulary test, and one unit per instruction set with exactly its kernels' flags.
set(CLARY_ISA_TEST_SOURCES ${CMAKE_CURRENT_LIST_DIR}/vocabulary_test.cpp)
foreach(kernel IN LISTS CLARY_KERNEL_SOURCES)
  string(REGEX REPLACE ".*/kernels_(.*)\\.cpp" "\\1" name ${kernel})
  set(source ${CMAKE_CURRENT_LIST_DIR}/vocabulary_${name}.cpp)
  if(NOT EXISTS ${source})
    continue()  # amx_emulated: the reference, vocabulary_scalar.cpp, has tiles
  endif()
  get_source_file_property(options ${kernel} DIRECTORY ${PROJECT_SOURCE_DIR} COMPILE_OPTIONS)
  set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${options}")
  list(APPEND CLARY_ISA_TEST_SOURCES ${source})
endforeach()
set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/vocabulary_test.cpp PROPERTIES COMPILE_DEFINITIONS "${CLARY_KERNEL_DEFINITIONS}")
