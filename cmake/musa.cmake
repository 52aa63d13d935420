# libmate_musa.so, where there is a compiler for it.
mate_gpu_option(MUSA "the MUSA toolkit with its compiler mcc works")

# Compilers of clang's kind. Not among the vendor's usual flags: -fno-signed-zeros, since zeros of
# both signs are told apart, and fast-math, since NaN and infinities are.
set(MATE_MCC_FLAGS -x musa --offload-arch=mp_31 -std=c++17 -O2 -Od3 -fPIC -fvisibility=hidden
  -fno-strict-aliasing -DNDEBUG -DMATE_MUSA
  -mllvm -mtgpu-load-cluster-mutation=1 -mllvm --num-dwords-of-load-in-mutation=64)

# Why the library is not built; empty where it is.
function(mate_musa_obstacle result)
  if(MATE_PLUGIN_MUSA STREQUAL "OFF")
    set(${result} "MATE_PLUGIN_MUSA=OFF" PARENT_SCOPE)
    return()
  endif()
  find_program(MATE_MCC mcc HINTS ENV MUSA_HOME ENV MUSA_PATH PATHS /usr/local/musa
    PATH_SUFFIXES bin)
  if(NOT MATE_MCC)
    set(${result} "no mcc was found (MUSA_HOME, MUSA_PATH, PATH, /usr/local/musa)" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${MATE_MCC} --version OUTPUT_VARIABLE said ERROR_VARIABLE said)
  string(REGEX MATCH "[0-9]+\\.[0-9]+(\\.[0-9]+)?" release "${said}")
  set(MATE_MCC_RELEASE "${release}" PARENT_SCOPE)
  # Before the build, so that a compiler that does not work here is a reason and no failure.
  set(trial "${CMAKE_CURRENT_BINARY_DIR}/mcc_trial")
  file(WRITE "${trial}.cu" "#include <musa_runtime.h>\n__global__ void trial(int* x) { *x = 1; }\n")
  execute_process(COMMAND ${MATE_MCC} ${MATE_MCC_FLAGS} -c "${trial}.cu" -o "${trial}.o"
    RESULT_VARIABLE failed OUTPUT_VARIABLE said ERROR_VARIABLE said)
  if(failed)
    file(WRITE "${trial}.txt" "${said}\n")
    set(${result} "${MATE_MCC} cannot compile here (see ${trial}.txt)" PARENT_SCOPE)
    return()
  endif()
  set(${result} "" PARENT_SCOPE)
endfunction()

mate_musa_obstacle(MATE_MUSA_OBSTACLE)
mate_gpu_note(MUSA "${MATE_MUSA_OBSTACLE}"
  "built with mcc ${MATE_MCC_RELEASE} for mp_31 and newer")
if(MATE_MUSA_OBSTACLE)
  return()
endif()

# CMake knows no language MUSA: each source of kernels is a command.
set(MATE_MUSA_OBJECTS)
foreach(source ${MATE_GPU_KERNELS})
  string(REPLACE "/" "_" object "${source}.o")
  set(object "${CMAKE_CURRENT_BINARY_DIR}/musa/${object}")
  add_custom_command(OUTPUT ${object}
    COMMAND ${MATE_MCC} ${MATE_MCC_FLAGS} -I${CMAKE_CURRENT_SOURCE_DIR}/csrc
      -MD -MF ${object}.d -c ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
    DEPENDS ${source}
    DEPFILE ${object}.d
    COMMENT "Building MUSA object ${source}"
    VERBATIM)
  list(APPEND MATE_MUSA_OBJECTS ${object})
endforeach()
file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/musa")

get_filename_component(MATE_MUSA_ROOT ${MATE_MCC} REALPATH)
get_filename_component(MATE_MUSA_ROOT ${MATE_MUSA_ROOT}/../.. ABSOLUTE)
add_library(mate_musa SHARED
  csrc/gpu/musa/no_sm90a.cpp
  csrc/gpu/musa/scratch.cpp
  ${MATE_GPU_HOST}
  ${MATE_MUSA_OBJECTS})
target_compile_definitions(mate_musa PRIVATE MATE_MUSA)
target_include_directories(mate_musa PRIVATE csrc ${MATE_MUSA_ROOT}/include)
target_link_directories(mate_musa PRIVATE ${MATE_MUSA_ROOT}/lib)
target_link_libraries(mate_musa PRIVATE tvm_ffi::header tvm_ffi::shared musa musart)
target_compile_options(mate_musa PRIVATE -O3 -Wall -Wextra)
# The runtime is found as the copy that torch_musa has loaded.
set_target_properties(mate_musa PROPERTIES BUILD_WITH_INSTALL_RPATH ON)
install(TARGETS mate_musa DESTINATION mate_plugin/lib)
