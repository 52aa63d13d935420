// The host side of a MUSA runtime whose one device is the host: its memory is the host's, and a
// stream runs what it is given at once.
#pragma once

#include <cstddef>

enum musaError_t { musaSuccess = 0, musaErrorInvalidValue = 1, musaErrorInvalidDevice = 101 };
enum musaDeviceAttr {
  musaDevAttrWarpSize = 10,
  musaDevAttrMultiProcessorCount = 16,
  musaDevAttrComputeCapabilityMajor = 75,
  musaDevAttrComputeCapabilityMinor = 76,
};
using musaStream_t = struct MUstream_st*;

musaError_t musaGetLastError();
const char* musaGetErrorString(musaError_t);
musaError_t musaGetDevice(int* device);
musaError_t musaSetDevice(int device);
musaError_t musaDeviceGetAttribute(int* value, musaDeviceAttr which, int device);
musaError_t musaMemsetAsync(void* data, int value, size_t bytes, musaStream_t stream);
