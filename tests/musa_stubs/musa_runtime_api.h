// Declarations of the MUSA runtime that csrc/gpu may rely on, for a compiler that only looks at the
// syntax: a name that is not here is an error.
#pragma once

#include <stddef.h>

typedef struct MUstream_st* musaStream_t;
enum musaError_t { musaSuccess = 0 };
enum musaDeviceAttr {
  musaDevAttrWarpSize,
  musaDevAttrMultiProcessorCount,
  musaDevAttrComputeCapabilityMajor,
  musaDevAttrComputeCapabilityMinor,
};

extern "C" {
musaError_t musaGetLastError();
const char* musaGetErrorString(musaError_t);
musaError_t musaGetDevice(int*);
musaError_t musaSetDevice(int);
musaError_t musaDeviceGetAttribute(int*, musaDeviceAttr, int);
musaError_t musaMemsetAsync(void*, int, size_t, musaStream_t);
}
