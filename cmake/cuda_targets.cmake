# What a launch file is compiled for, by the version of nvcc: sm_* is machine code, compute_* is PTX, which the driver
# compiles. tests/cuda/targets_test.cmake lists what each version gets.
#
# sm_120 and sm_100 are known from 12.8 on, the family sm_100f (which has sm_103) from 12.9 on. Before, and for what
# lies between (sm_110) or comes later, there is PTX: of 8.9 for the kernels of sm_120, of 8.0 for those of sm_100; it
# has all that they use.
function(clary_cuda_targets name version result)
  set(sm80 sm_80 sm_86)
  set(sm89 sm_89)
  set(sm90 sm_90a)
  set(sm100 compute_80)
  set(sm120 compute_89)
  if(version VERSION_GREATER_EQUAL 12.8)
    set(sm100 sm_100)
    set(sm120 sm_120 compute_89)
  endif()
  if(version VERSION_GREATER_EQUAL 12.9)
    set(sm100 sm_100f)
  endif()
  if(NOT DEFINED ${name})
    message(FATAL_ERROR "clary_cuda_targets: there is no launch file ${name}")
  endif()
  set(${result} ${${name}} PARENT_SCOPE)
endfunction()
