// What gpu/device_api.h says that it takes from the language.
#pragma once

#include "musa_runtime_api.h"

#define __host__ __attribute__((host))
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))

struct dim3 {
  unsigned x, y, z;
  __host__ __device__ constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1)
      : x(x), y(y), z(z) {}
};
// What clang turns <<<>>> of CUDA into, by what it takes the version to be.
extern "C" int cudaConfigureCall(dim3, dim3, size_t = 0, musaStream_t = nullptr);
extern "C" int __cudaPushCallConfiguration(dim3, dim3, size_t = 0, musaStream_t = nullptr);

extern const __device__ dim3 threadIdx, blockIdx, blockDim, gridDim;

struct __attribute__((aligned(8))) uint2 {
  unsigned x, y;
};
struct __attribute__((aligned(16))) uint4 {
  unsigned x, y, z, w;
};
struct __attribute__((aligned(8))) float2 {
  float x, y;
};
struct __attribute__((aligned(16))) float4 {
  float x, y, z, w;
};
__host__ __device__ uint2 make_uint2(unsigned, unsigned);
__host__ __device__ uint4 make_uint4(unsigned, unsigned, unsigned, unsigned);
__host__ __device__ float2 make_float2(float, float);

__device__ void __syncthreads();
__device__ int __syncthreads_or(int);
__device__ void __syncwarp(unsigned mask = 0xffffffff);
__device__ void __threadfence();
__device__ unsigned __ballot_sync(unsigned, int);

#define MATE_STUB_SHUFFLES(type)                                          \
  __device__ type __shfl_sync(unsigned, type, int, int = 32);             \
  __device__ type __shfl_up_sync(unsigned, type, unsigned int, int = 32); \
  __device__ type __shfl_xor_sync(unsigned, type, int, int = 32)
MATE_STUB_SHUFFLES(int);
MATE_STUB_SHUFFLES(unsigned);
MATE_STUB_SHUFFLES(long);
MATE_STUB_SHUFFLES(unsigned long);
MATE_STUB_SHUFFLES(long long);
MATE_STUB_SHUFFLES(unsigned long long);
MATE_STUB_SHUFFLES(float);

__device__ int atomicAdd(int*, int);
__device__ unsigned atomicAdd(unsigned*, unsigned);
__device__ int atomicMax(int*, int);

// Beside those of the C library, which are the host's.
__device__ void* memcpy(void*, const void*, size_t);
__device__ float expf(float);
__device__ float fabsf(float);
__device__ float fmaf(float, float, float);
__device__ float fminf(float, float);
__device__ float sqrtf(float);

__device__ int __popc(unsigned);
__device__ int __ffs(int);
__device__ int __clz(int);
__device__ unsigned __float_as_uint(float);
__device__ float __uint_as_float(unsigned);
