// Where a kernel runs, and how the host side of the GPU kernels reports errors.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace mate::gpu {

struct Launch {
  cudaStream_t stream;
  int device;
  int num_sms;  // multiprocessors that may be used
};

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// After a launch: configuration errors show at once, those of the device at the next
// synchronisation.
inline void check_launch(const char* what) { check(cudaGetLastError(), what); }

// Which family of kernels may serve a call: MATE_PLUGIN_IMPL, or the best that fits.
enum class Impl { kAuto, kPortable, kSm90a };

// Throws std::invalid_argument where MATE_PLUGIN_IMPL names an unknown one.
Impl wanted_impl();

// Whether the device has what the sm_90a kernels need.
bool is_hopper(int device);

int num_sms(int device);

}  // namespace mate::gpu
