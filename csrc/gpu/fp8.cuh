// FP8 codes one or two at a time (OCP OFP8): rounding to nearest even, what is finite saturates.
#pragma once

#include <cstdint>

#include "gpu/device_api.h"
#include "params.h"

#ifndef MATE_MUSA
#include "gpu/cuda/fp8.cuh"  // which defines MATE_FP8_HARDWARE
#endif

namespace mate::gpu {

// What distinguishes the two formats: 3 or 2 bits of fraction, and a bias of 7 or 15.
template <DType type>
struct Fp8 {
  static_assert(type == DType::kE4M3 || type == DType::kE5M2, "an FP8 type");
  static constexpr bool kHasInf = type == DType::kE5M2;
  static constexpr int kFraction = kHasInf ? 2 : 3, kBias = kHasInf ? 15 : 7;
  static constexpr uint32_t kLargestCode = kHasInf ? 0x7b : 0x7e;
  static constexpr float kLargest = kHasInf ? 57344.0f : 448.0f;
};

template <DType type>
__device__ inline float decode_fp8(uint8_t code) {
  using Format = Fp8<type>;
  const uint32_t sign = (code & 0x80u) << 24, magnitude = code & 0x7f;
  // In place of a float's exponent and fraction a code lacks 2^(127 - bias); the product is exact,
  // subnormals included.
  constexpr float kMissing = Format::kHasInf ? 0x1p112f : 0x1p120f;
  float value = __uint_as_float(magnitude << (23 - Format::kFraction)) * kMissing;
  if (magnitude > (Format::kHasInf ? 0x7bu : 0x7eu)) {
    value = __uint_as_float(magnitude == 0x7c ? 0x7f800000 : 0x7fc00000);
  }
  return __uint_as_float(__float_as_uint(value) | sign);
}

// Code of a magnitude that is not NaN and at most the largest finite value or a little above.
template <DType type>
__device__ inline uint32_t encode_magnitude(float magnitude) {
  using Format = Fp8<type>;
  constexpr int kDropped = 23 - Format::kFraction;
  constexpr float kSmallestNormal = Format::kHasInf ? 0x1p-14f : 0x1p-6f;
  // Beside this addend a unit in the last place of a float is that of subnormal codes.
  constexpr float kAddend = Format::kHasInf ? 128.0f : 16384.0f;
  const uint32_t bits = __float_as_uint(magnitude);
  const uint32_t rounded = bits + ((1u << (kDropped - 1)) - 1) + ((bits >> kDropped) & 1);
  const uint32_t normal = (rounded >> kDropped) - ((127u - Format::kBias) << Format::kFraction);
  const uint32_t subnormal = __float_as_uint(magnitude + kAddend) & 0xff;
  const uint32_t code = magnitude < kSmallestNormal ? subnormal : normal;
  return code < Format::kLargestCode ? code : Format::kLargestCode;
}

// Magnitudes beyond the largest finite value become that; infinities of e5m2 and NaN are kept.
template <DType type>
__device__ inline uint8_t encode_fp8(float value) {
  using Format = Fp8<type>;
  const uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7fffffff;
  uint32_t code;
#ifdef MATE_FP8_HARDWARE
  code = hardware::encode_fp8<type>(value);
#else
  code = encode_magnitude<type>(fminf(fabsf(value), Format::kLargest));
  if (magnitude > 0x7f800000) code = 0x7f;
  code |= bits >> 24 & 0x80;
#endif
  if (Format::kHasInf && magnitude == 0x7f800000) code = 0x7c | (bits >> 24 & 0x80);
  return static_cast<uint8_t>(code);
}

// Two elements; the first is in the low byte.
template <DType type>
__device__ inline float2 decode_fp8_pair(uint16_t codes) {
#ifdef MATE_FP8_HARDWARE
  return __half22float2(__half2(hardware::halves_of_fp8_pair<type>(codes)));
#else
  return make_float2(decode_fp8<type>(codes & 0xff), decode_fp8<type>(codes >> 8));
#endif
}

template <DType type>
__device__ inline uint16_t encode_fp8_pair(float first, float second) {
#ifdef MATE_FP8_HARDWARE
  if (!Fp8<type>::kHasInf) {
    return hardware::encode_fp8_pair<type>(first, second);
  }
#endif
  return static_cast<uint16_t>(encode_fp8<type>(first) | encode_fp8<type>(second) << 8);
}

}  // namespace mate::gpu
