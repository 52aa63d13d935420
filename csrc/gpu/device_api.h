// What kernels that are compiled as CUDA and as MUSA may use beside plain C++. Of either dialect
// they assume:
//     __global__ __device__ __host__ __shared__ __launch_bounds__  <<<>>>  threadIdx blockIdx
//     blockDim gridDim  __syncthreads __syncthreads_or __syncwarp __threadfence  __ballot_sync
//     __shfl_sync __shfl_up_sync __shfl_xor_sync of 32 and 64 bits  __popc __ffs __clz
//     __float_as_uint __uint_as_float  atomicAdd and atomicMax of 32 bits
//     uint2 uint4 float2 float4 and make_*  expf fabsf fmaf fminf sqrtf memcpy
//     __half, a bfloat16, and their conversions from and to float
// What only one of them has is behind the functions below or in the folders cuda/ and sm90a/.
#pragma once

#include <cstdint>
#include <cstring>

#include "gpu/runtime.h"
#include "params.h"

#ifdef MATE_MUSA
#include <musa_bf16.h>
#include <musa_fp16.h>
#include <musa_runtime.h>
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#if defined(__MUSA_ARCH__) && __MUSA_ARCH__ < 310
#error "expected MP31 or newer: warps of older devices do not have 32 threads"
#endif

namespace mate::gpu {

constexpr int kWarp = 32;

#ifdef MATE_MUSA
using Bf16 = __mt_bfloat16;
#else
using Bf16 = __nv_bfloat16;
#endif

#ifdef MATE_MUSA
// Of any integers: it is not known for which there are functions.
template <typename T>
MATE_ANYWHERE constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
MATE_ANYWHERE constexpr T max(T a, T b) {
  return a < b ? b : a;
}
#endif

#ifdef MATE_MUSA
// Two elements of 16 bits, the first in the low ones.
template <typename T>
__device__ inline uint32_t word_of(T first, T second) {
  const T pair[2] = {first, second};
  uint32_t word;
  memcpy(&word, pair, sizeof(word));
  return word;
}
#endif

__device__ inline __half half_of_bits(uint32_t bits) {
#ifdef MATE_MUSA
  const auto low = static_cast<uint16_t>(bits);
  __half half;
  memcpy(&half, &low, sizeof(low));
  return half;
#else
  return __ushort_as_half(static_cast<unsigned short>(bits));
#endif
}

// Bits of a half times 256.
__device__ inline uint32_t times_256(uint32_t bits) {
#ifdef MATE_MUSA
  const __half product = __float2half_rn(__half2float(half_of_bits(bits)) * 256.0f);
  uint16_t low;
  memcpy(&low, &product, sizeof(low));
  return low;
#else
  return __half_as_ushort(__hmul(half_of_bits(bits), __float2half_rn(256.0f)));
#endif
}

// Two floats rounded to nearest even, the first in the low 16 bits.
__device__ inline uint32_t pack_halves(float first, float second) {
#ifdef MATE_MUSA
  return word_of(__float2half_rn(first), __float2half_rn(second));
#else
  const __half2 pair = __floats2half2_rn(first, second);
  return __half_as_ushort(__low2half(pair)) |
         static_cast<uint32_t>(__half_as_ushort(__high2half(pair))) << 16;
#endif
}

__device__ inline uint32_t pack_bf16s(float first, float second) {
#ifdef MATE_MUSA
  return word_of(__float2bfloat16_rn(first), __float2bfloat16_rn(second));
#else
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return __bfloat16_as_ushort(pair.x) | static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
#endif
}

// The bytes of b and a, numbered from the lowest of a, that the nibbles of `order` name.
__device__ inline uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t order) {
#ifdef MATE_MUSA
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word |= static_cast<uint32_t>(bytes >> (order >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return word;
#else
  return __byte_perm(a, b, order);
#endif
}

}  // namespace mate::gpu
