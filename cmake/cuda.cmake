# libmate_cuda.so, where there is a compiler for it.
mate_gpu_option(CUDA "nvcc 12.8 or newer works")
set(MATE_NVCC_LEAST 12.8)

# Why the library is not built; empty where it is.
function(mate_cuda_obstacle result)
  if(MATE_PLUGIN_CUDA STREQUAL "OFF")
    set(${result} "MATE_PLUGIN_CUDA=OFF" PARENT_SCOPE)
    return()
  endif()
  # Before CMake's own search, which costs a second and ends in an error where nvcc is old.
  if(CMAKE_CUDA_COMPILER)
    set(nvcc ${CMAKE_CUDA_COMPILER})
  elseif(NOT "$ENV{CUDACXX}" STREQUAL "")
    set(nvcc $ENV{CUDACXX})
  else()
    find_program(MATE_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
      PATH_SUFFIXES bin)
    set(nvcc ${MATE_NVCC})
  endif()
  if(NOT nvcc)
    set(${result} "no nvcc was found (CUDACXX, CUDA_HOME, PATH, /usr/local/cuda)" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE said ERROR_VARIABLE said)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" release "${said}")
  if(NOT release OR CMAKE_MATCH_1 VERSION_LESS MATE_NVCC_LEAST)
    set(${result} "expected nvcc ${MATE_NVCC_LEAST} or newer, found ${nvcc} (${release})"
      PARENT_SCOPE)
    return()
  endif()
  set(MATE_NVCC_RELEASE ${CMAKE_MATCH_1} PARENT_SCOPE)
  set(ENV{CUDACXX} ${nvcc})
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(${result} "${nvcc} cannot compile here (see CMake's log)" PARENT_SCOPE)
    return()
  endif()
  set(${result} "" PARENT_SCOPE)
endfunction()

mate_cuda_obstacle(MATE_CUDA_OBSTACLE)
mate_gpu_note(CUDA "${MATE_CUDA_OBSTACLE}"
  "built with nvcc ${MATE_NVCC_RELEASE} for sm_80 and newer, sm_90a apart")
if(MATE_CUDA_OBSTACLE)
  return()
endif()

# Architectures are named for each source below.
set(CMAKE_CUDA_ARCHITECTURES OFF)
enable_language(CUDA)

set(MATE_CUDA_SM90A
  csrc/gpu/sm90a/gemm_16bit.cu
  csrc/gpu/sm90a/gemm_columns.cu
  csrc/gpu/sm90a/gemm_e4m3.cu
  csrc/gpu/sm90a/gemm_finishing.cu
  csrc/gpu/sm90a/gemm_k_major.cu
  csrc/gpu/sm90a/gemm_mixed_fp8.cu
  csrc/gpu/sm90a/gemm_split.cu
  csrc/gpu/sm90a/gemm_turned.cu
  csrc/gpu/sm90a/gemm_w8a16.cu
  csrc/gpu/sm90a/indexer_flat.cu
  csrc/gpu/sm90a/indexer_paged.cu)
add_library(mate_cuda SHARED
  csrc/gpu/cuda/scratch.cpp
  csrc/gpu/sm90a/gemm.cpp
  csrc/gpu/sm90a/indexer.cpp
  csrc/gpu/sm90a/tensor_map.cpp
  ${MATE_GPU_HOST}
  ${MATE_GPU_KERNELS}
  ${MATE_CUDA_SM90A})
target_include_directories(mate_cuda PRIVATE csrc ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
# The driver is not linked: its entries are looked up when they are used.
target_link_libraries(mate_cuda PRIVATE tvm_ffi::header tvm_ffi::shared)
# torch brings a CUDA runtime too, whose symbols must not take the place of ours.
target_link_options(mate_cuda PRIVATE LINKER:--exclude-libs,ALL)
target_compile_options(mate_cuda PRIVATE
  "$<$<COMPILE_LANGUAGE:CXX>:-O3;-Wall;-Wextra>"
  # Registers that do not fit are a fault, told at once.
  "$<$<COMPILE_LANGUAGE:CUDA>:-lineinfo;-Xptxas=-warn-spills,-warn-lmem-usage>")
set(SM80 "-gencode=arch=compute_80,code=[sm_80,compute_80]")
set(SM90A "-gencode=arch=compute_90a,code=sm_90a")
set_source_files_properties(${MATE_GPU_KERNELS} PROPERTIES COMPILE_OPTIONS "${SM80};${SM90A}")
set_source_files_properties(${MATE_CUDA_SM90A} PROPERTIES COMPILE_OPTIONS "${SM90A}")
set_target_properties(mate_cuda PROPERTIES
  CUDA_STANDARD 17
  CUDA_STANDARD_REQUIRED ON
  CUDA_VISIBILITY_PRESET hidden
  CUDA_RUNTIME_LIBRARY Static
  BUILD_WITH_INSTALL_RPATH ON)
install(TARGETS mate_cuda DESTINATION mate_plugin/lib)
