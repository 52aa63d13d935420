// Where a kernel runs, and how the host side of the GPU kernels reports errors.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "gpu/runtime.h"

namespace mate::gpu {

struct Launch {
  Stream stream;
  int device;
  int num_sms;  // multiprocessors that may be used
};

inline void check(MATE_RUNTIME(Error_t) status, const char* what) {
  if (status == MATE_RUNTIME(Success)) return;
  throw std::runtime_error(std::string(what) + ": " + MATE_RUNTIME(GetErrorString)(status));
}

// After a launch: configuration errors show at once, those of the device at the next
// synchronisation.
inline void check_launch(const char* what) { check(MATE_RUNTIME(GetLastError)(), what); }

// Sets `bytes` bytes in the order of the stream.
inline void fill_bytes(void* data, int value, int64_t bytes, const Launch& launch,
                       const char* what) {
  check(MATE_RUNTIME(MemsetAsync)(data, value, bytes, launch.stream), what);
}

// Which family of kernels may serve a call: MATE_PLUGIN_IMPL, or the best that fits.
enum class Impl { kAuto, kPortable, kSm90a };

// Throws std::invalid_argument where MATE_PLUGIN_IMPL names an unknown one.
Impl wanted_impl();

// Whether the device has what the sm_90a kernels need.
bool is_hopper(int device);

// Throws where the device is older than the kernels serve.
int num_sms(int device);

}  // namespace mate::gpu
