// Elements of any DType as floats and back, one at a time and in vectors.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "gpu/device_api.h"
#include "gpu/fp8.cuh"
#include "params.h"

namespace mate::gpu {

// Calls f with the type, which is not FP8, as a constant: f(std::integral_constant<DType, t>()).
template <typename F>
void with_wide_type(DType type, const F& f) {
  switch (type) {
    case DType::kBF16:
      return f(std::integral_constant<DType, DType::kBF16>());
    case DType::kF16:
      return f(std::integral_constant<DType, DType::kF16>());
    case DType::kF32:
      return f(std::integral_constant<DType, DType::kF32>());
    default:
      throw std::invalid_argument("a tag that names no wide dtype");
  }
}

// The same for FP8 types.
template <typename F>
void with_fp8_type(DType type, const F& f) {
  switch (type) {
    case DType::kE4M3:
      return f(std::integral_constant<DType, DType::kE4M3>());
    case DType::kE5M2:
      return f(std::integral_constant<DType, DType::kE5M2>());
    default:
      throw std::invalid_argument("a tag that names no FP8 dtype");
  }
}

// Element i.
template <DType type>
__device__ inline float load(const void* base, int64_t i) {
  if constexpr (type == DType::kF32) {
    return static_cast<const float*>(base)[i];
  } else if constexpr (type == DType::kBF16) {
    return __bfloat162float(static_cast<const Bf16*>(base)[i]);
  } else if constexpr (type == DType::kF16) {
    return __half2float(static_cast<const __half*>(base)[i]);
  } else {
    return decode_fp8<type>(static_cast<const uint8_t*>(base)[i]);
  }
}

// Rounds to nearest even; FP8 saturates to the largest finite value, NaN stays NaN.
template <DType type>
__device__ inline void store(void* base, int64_t i, float v) {
  if constexpr (type == DType::kF32) {
    static_cast<float*>(base)[i] = v;
  } else if constexpr (type == DType::kBF16) {
    static_cast<Bf16*>(base)[i] = __float2bfloat16_rn(v);
  } else if constexpr (type == DType::kF16) {
    static_cast<__half*>(base)[i] = __float2half_rn(v);
  } else {
    static_cast<uint8_t*>(base)[i] = encode_fp8<type>(v);
  }
}

// The value that v becomes when it is stored.
template <DType type>
__device__ inline float rounded(float v) {
  if constexpr (type == DType::kBF16) return __bfloat162float(__float2bfloat16_rn(v));
  if constexpr (type == DType::kF16) return __half2float(__float2half_rn(v));
  if constexpr (type <= DType::kE5M2) return decode_fp8<type>(encode_fp8<type>(v));
  return v;
}

// Bytes of an element, for device code, which cannot call size_of.
template <DType type>
constexpr int kSize = static_cast<int>(size_of(type));

// Elements in a word of 32 bits, and in a vector of 16 bytes.
template <DType type>
constexpr int kPerWord = 4 / kSize<type>;
template <DType type>
constexpr int kPerVector = 4 * kPerWord<type>;

// Elements of one word; the first is in the low bits.
template <DType type>
__device__ inline void unpack(uint32_t word, float* v) {
  if constexpr (type == DType::kF32) {
    v[0] = __uint_as_float(word);
  } else if constexpr (type == DType::kBF16) {
    v[0] = __uint_as_float(word << 16);
    v[1] = __uint_as_float(word & 0xffff0000);
  } else if constexpr (type == DType::kF16) {
    v[0] = __half2float(half_of_bits(word & 0xffff));
    v[1] = __half2float(half_of_bits(word >> 16));
  } else {
    const float2 low = decode_fp8_pair<type>(static_cast<uint16_t>(word & 0xffff));
    const float2 high = decode_fp8_pair<type>(static_cast<uint16_t>(word >> 16));
    v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
  }
}

template <DType type>
__device__ inline uint32_t pack(const float* v) {
  if constexpr (type == DType::kF32) {
    return __float_as_uint(v[0]);
  } else if constexpr (type == DType::kBF16) {
    return pack_bf16s(v[0], v[1]);
  } else if constexpr (type == DType::kF16) {
    return pack_halves(v[0], v[1]);
  } else {
    return encode_fp8_pair<type>(v[0], v[1]) |
           static_cast<uint32_t>(encode_fp8_pair<type>(v[2], v[3])) << 16;
  }
}

// n words at p, which is aligned to as many bytes as an access has: 4, 8 or 16.
template <int n>
__device__ inline void load_words(const void* p, uint32_t (&words)[n]) {
  static_assert(n == 1 || n == 2 || n % 4 == 0, "whole accesses");
  if constexpr (n == 1) {
    words[0] = *static_cast<const uint32_t*>(p);
  } else if constexpr (n == 2) {
    const uint2 w = *static_cast<const uint2*>(p);
    words[0] = w.x, words[1] = w.y;
  } else {
#pragma unroll
    for (int i = 0; i < n; i += 4) {
      const uint4 w = static_cast<const uint4*>(p)[i / 4];
      words[i] = w.x, words[i + 1] = w.y, words[i + 2] = w.z, words[i + 3] = w.w;
    }
  }
}

template <int n>
__device__ inline void store_words(void* p, const uint32_t (&words)[n]) {
  static_assert(n == 1 || n == 2 || n % 4 == 0, "whole accesses");
  if constexpr (n == 1) {
    *static_cast<uint32_t*>(p) = words[0];
  } else if constexpr (n == 2) {
    *static_cast<uint2*>(p) = make_uint2(words[0], words[1]);
  } else {
#pragma unroll
    for (int i = 0; i < n; i += 4) {
      static_cast<uint4*>(p)[i / 4] =
          make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
    }
  }
}

// n elements at p, whole words, aligned as load_words wants.
template <DType type, int n>
__device__ inline void load_vector(const void* p, float (&v)[n]) {
  uint32_t words[n / kPerWord<type>];
  load_words(p, words);
#pragma unroll
  for (int i = 0; i < n / kPerWord<type>; ++i) unpack<type>(words[i], v + i * kPerWord<type>);
}

template <DType type, int n>
__device__ inline void store_vector(void* p, const float (&v)[n]) {
  uint32_t words[n / kPerWord<type>];
#pragma unroll
  for (int i = 0; i < n / kPerWord<type>; ++i) words[i] = pack<type>(v + i * kPerWord<type>);
  store_words(p, words);
}

}  // namespace mate::gpu
