// Conversions of FP8 by instructions of newer NVIDIA GPUs; gpu/fp8.cuh has what all devices can do.
#pragma once

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define MATE_FP8_HARDWARE
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "params.h"

namespace mate::gpu::hardware {

template <DType type>
constexpr auto kFormat = type == DType::kE5M2 ? __NV_E5M2 : __NV_E4M3;

template <DType type>
__device__ inline uint32_t encode_fp8(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, kFormat<type>);
}

template <DType type>
__device__ inline uint16_t encode_fp8_pair(float first, float second) {
  return __nv_cvt_float2_to_fp8x2(make_float2(first, second), __NV_SATFINITE, kFormat<type>);
}

template <DType type>
__device__ inline __half2_raw halves_of_fp8_pair(uint16_t codes) {
  return __nv_cvt_fp8x2_to_halfraw2(codes, kFormat<type>);
}

}  // namespace mate::gpu::hardware
#endif
