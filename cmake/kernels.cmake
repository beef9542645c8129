# Every instruction set is one translation unit with its own flags; nothing else may use them, so that the binary runs
# on any CPU of its architecture. -ffp-contract=off: a fused multiply-add happens where the vocabulary says so, and
# nowhere else, which is what makes the instruction sets agree bit for bit.
set(CLARY_KERNEL_FLAGS -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wno-ignored-attributes)
if(CLARY_SANITIZE)
  set(CLARY_KERNEL_FLAGS -O1 -ffp-contract=off -Wno-ignored-attributes)  # instrumented unrolled loops take minutes to compile at -O3
endif()
if(CLARY_SANITIZE MATCHES "undefined")
  # Two checks per access of what the checks of memory and of indices see too.
  list(APPEND CLARY_KERNEL_FLAGS -fno-sanitize=object-size,pointer-overflow)
endif()
if(CLARY_BUILD_FUZZERS)
  list(APPEND CLARY_KERNEL_FLAGS -fno-sanitize=undefined)  # the asan preset has it
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT CLARY_SANITIZE)
  # The tree optimisers below undo the register allocation of the unrolled products (spills cost a third of the speed).
  list(APPEND CLARY_KERNEL_FLAGS -fno-tree-pre -fno-tree-vectorize)
endif()

if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # Its AVX-512 headers initialise "undefined" vectors with themselves, and it then warns of that (GCC bug 105593).
  list(APPEND CLARY_KERNEL_FLAGS -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

# What this machine runs, by the names of the kernels.
function(clary_native_isas result)
  set(names amx_emulated)
  set(all avx2 avxvnni avx512vnni avx512bf16 amx neon i8mm)
  set(flags avx2 avx_vnni avx512_vnni avx512_bf16 amx_int8 asimddp i8mm)
  file(READ /proc/cpuinfo cpu)
  foreach(name flag IN ZIP_LISTS all flags)
    if(cpu MATCHES " ${flag}[ \n]")
      list(APPEND names ${name})
    endif()
  endforeach()
  set(${result} ${names} PARENT_SCOPE)
endfunction()

set(isas ${CLARY_ISAS})
if(CLARY_ISAS STREQUAL "native")
  clary_native_isas(isas)
endif()
foreach(name IN LISTS isas)
  if(NOT EXISTS ${PROJECT_SOURCE_DIR}/src/cpu/kernels_${name}.cpp)
    message(FATAL_ERROR "CLARY_ISAS: \"${name}\" is not known; names are those of src/cpu/kernels_*.cpp, or native alone")
  endif()
endforeach()

set(CLARY_KERNEL_SOURCES)
set(CLARY_KERNEL_DEFINITIONS)  # CLARY_HAS_AVX2 and so on
function(clary_kernels name)
  if(CLARY_ISAS AND NOT name IN_LIST isas AND NOT name STREQUAL "scalar")
    return()
  endif()
  set(source ${PROJECT_SOURCE_DIR}/src/cpu/kernels_${name}.cpp)
  if(CLARY_SANITIZE AND NOT name MATCHES "^(scalar|avx2|neon)$")
    # The same templates as of the sets above; the checks of undefined behaviour triple the time to compile them.
    list(APPEND ARGN -fno-sanitize=undefined)
  endif()
  set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${CLARY_KERNEL_FLAGS};${ARGN}")
  set(CLARY_KERNEL_SOURCES ${CLARY_KERNEL_SOURCES} ${source} PARENT_SCOPE)
  string(TOUPPER ${name} upper)
  set(CLARY_KERNEL_DEFINITIONS ${CLARY_KERNEL_DEFINITIONS} CLARY_HAS_${upper} PARENT_SCOPE)
endfunction()

# Plain loops over 16 lanes: unrolling them all takes minutes and gains nothing, SSE's or NEON's vectors do.
set(plain)
if(NOT CLARY_SANITIZE)
  set(plain -O2 -ftree-vectorize)
elseif(CLARY_SANITIZE MATCHES "undefined")
  # The set with real vectors has these checks of the same templates.
  set(plain -fno-sanitize=null,alignment)
endif()
clary_kernels(scalar ${plain})
clary_kernels(amx_emulated ${plain})
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mprefer-vector-width=512)
  clary_kernels(avx2 ${avx2})
  clary_kernels(avxvnni ${avx2} -mavxvnni)
  clary_kernels(avx512vnni ${avx512})
  clary_kernels(avx512bf16 ${avx512} -mavx512bf16)
  clary_kernels(amx ${avx512} -mavx512bf16 -mavx512vbmi -mamx-tile -mamx-int8 -mamx-bf16)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  clary_kernels(neon -march=armv8.2-a+dotprod+fp16)
  clary_kernels(i8mm -march=armv8.6-a+dotprod+i8mm+bf16)
endif()
