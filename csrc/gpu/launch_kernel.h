// The one place that launches kernels.
#pragma once

#include <type_traits>

#include "gpu/device_api.h"
#include "gpu/launch.h"

namespace mate::gpu {

struct Grid {
  int64_t blocks, threads;
  int64_t shared = 0;  // bytes that the kernel finds by MATE_DYNAMIC_SHARED
};

// A stand-in that runs kernels on the host brings both.
#ifndef MATE_LAUNCH
#define MATE_LAUNCH(kernel, blocks, threads, shared, stream, ...) \
  kernel<<<blocks, threads, shared, stream>>>(__VA_ARGS__)
#define MATE_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

// `what` names the launch in errors.
template <typename... Parameters>
void launch_kernel(const char* what, void (*kernel)(Parameters...), const Grid& grid,
                   const Launch& launch, std::decay_t<Parameters>... arguments) {
  MATE_LAUNCH(kernel, static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.threads),
              static_cast<size_t>(grid.shared), launch.stream, arguments...);
  check_launch(what);
}

}  // namespace mate::gpu
