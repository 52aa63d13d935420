// MUSA's names for the host, meaning CUDA's: for nvcc to compile and an NVIDIA GPU to run what is
// behind MATE_MUSA. What is not named here does not exist there.
#pragma once

#include <cuda_runtime_api.h>

#define musaStream_t cudaStream_t
#define musaError_t cudaError_t
#define musaSuccess cudaSuccess
#define musaGetLastError cudaGetLastError
#define musaGetErrorString cudaGetErrorString
#define musaGetDevice cudaGetDevice
#define musaSetDevice cudaSetDevice
#define musaDeviceAttr cudaDeviceAttr
#define musaDeviceGetAttribute cudaDeviceGetAttribute
#define musaDevAttrWarpSize cudaDevAttrWarpSize
#define musaDevAttrMultiProcessorCount cudaDevAttrMultiProcessorCount
#define musaDevAttrComputeCapabilityMajor cudaDevAttrComputeCapabilityMajor
#define musaDevAttrComputeCapabilityMinor cudaDevAttrComputeCapabilityMinor
#define musaMemsetAsync cudaMemsetAsync
