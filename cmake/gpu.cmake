# What the libraries for GPUs share: whether each is built is an option, which is printed with the
# reason and kept beside the libraries for people who ask the installed package.

# Defines MATE_PLUGIN_<kind>; `needs` completes "where ...".
macro(mate_gpu_option kind needs)
  string(TOLOWER ${kind} library)
  set(MATE_PLUGIN_${kind} AUTO CACHE STRING
    "Build libmate_${library}.so: AUTO (where ${needs}), ON or OFF")
  if(NOT MATE_PLUGIN_${kind} MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR
      "MATE_PLUGIN_${kind}: expected AUTO, ON or OFF, got ${MATE_PLUGIN_${kind}}")
  endif()
endmacro()

# Says that the library is built, as `built` tells, or why not, where `obstacle` is not empty.
function(mate_gpu_note kind obstacle built)
  string(TOLOWER ${kind} library)
  if(obstacle AND MATE_PLUGIN_${kind} STREQUAL "ON")
    message(FATAL_ERROR "MATE_PLUGIN_${kind}=ON: ${obstacle}")
  endif()
  if(obstacle)
    set(built "not built: ${obstacle}")
  endif()
  message(STATUS "libmate_${library}.so: ${built}")
  file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/libmate_${library}.txt" "${built}\n")
  install(FILES "${CMAKE_CURRENT_BINARY_DIR}/libmate_${library}.txt" DESTINATION mate_plugin/lib)
endfunction()

set(MATE_GPU_KERNELS
  csrc/gpu/cache_keys.cu
  csrc/gpu/cache_rows.cu
  csrc/gpu/moe_permute.cu
  csrc/gpu/moe_route.cu
  csrc/gpu/moe_unpermute.cu
  csrc/gpu/portable/gemm.cu
  csrc/gpu/portable/index_topk.cu
  csrc/gpu/portable/indexer.cu
  csrc/gpu/portable/indexer_schedule.cu
  csrc/gpu/portable/plan.cu
  csrc/gpu/quant.cu
  csrc/gpu/topk.cu)
set(MATE_GPU_HOST
  csrc/api/count.cpp
  csrc/gpu/api/caches.cpp
  csrc/gpu/api/gemm.cpp
  csrc/gpu/api/indexer.cpp
  csrc/gpu/api/pieces.cpp
  csrc/gpu/api/topk.cpp
  csrc/gpu/entry.cpp
  csrc/gpu/launch.cpp)
