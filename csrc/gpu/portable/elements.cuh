// Operands of products in the type that products are made in, which holds their values exactly:
// FP8 is exact in half and in bfloat16, NaN, infinities and subnormals included.
#pragma once

#include "gpu/convert.cuh"

namespace mate::gpu::portable {

template <typename T>
MATE_ANYWHERE constexpr bool holds(DType type) {
  if (std::is_same_v<T, float>) return true;
  if (type <= DType::kE5M2) return true;
  return type == (std::is_same_v<T, __half> ? DType::kF16 : DType::kBF16);
}

__device__ inline float load_any(DType type, const void* base, int64_t i) {
  switch (type) {
    case DType::kE4M3:
      return load<DType::kE4M3>(base, i);
    case DType::kE5M2:
      return load<DType::kE5M2>(base, i);
    case DType::kBF16:
      return load<DType::kBF16>(base, i);
    case DType::kF16:
      return load<DType::kF16>(base, i);
    default:
      return load<DType::kF32>(base, i);
  }
}

template <typename T>
__device__ inline T narrowed(float v) {
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(v);
  if constexpr (std::is_same_v<T, Bf16>) return __float2bfloat16_rn(v);
  if constexpr (std::is_same_v<T, float>) return v;
}

// Two halves of the two codes in the low 16 bits.
template <DType type>
__device__ inline uint32_t half_pair(uint32_t codes) {
  const uint32_t wide = byte_perm(codes, 0, 0x1404);  // each code is the high byte of a half
  if constexpr (type == DType::kE5M2) return wide;
#ifdef MATE_FP8_HARDWARE
  const auto pair = hardware::halves_of_fp8_pair<DType::kE4M3>(static_cast<uint16_t>(codes));
  return pair.x | static_cast<uint32_t>(pair.y) << 16;
#else
  // Moved into place of a half's exponent and fraction, a code lacks 2^(15 - 7).
  const uint32_t magnitude = (wide & 0x7f007f00) >> 1;
  uint32_t low = times_256(magnitude & 0xffff), high = times_256(magnitude >> 16);
  if ((codes & 0x7f) == 0x7f) low = 0x7fff;
  if ((codes & 0x7f00) == 0x7f00) high = 0x7fff;
  return (wide & 0x80008000) | low | high << 16;
#endif
}

// The four words that elements of T fill, from as many elements of another type; those are in a
// quarter as many words where they have a quarter of the size.
template <typename T, DType type>
__device__ inline void convert_words(const uint32_t* raw, uint32_t (&out)[4]) {
  static_assert(size_of(type) <= static_cast<int64_t>(sizeof(T)), "exact");
  if constexpr (size_of(type) == sizeof(T)) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = raw[i];
  } else if constexpr (std::is_same_v<T, __half>) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      out[2 * i] = half_pair<type>(raw[i] & 0xffff);
      out[2 * i + 1] = half_pair<type>(raw[i] >> 16);
    }
  } else {
    constexpr int kEach = kPerWord<type>, kWords = 16 / sizeof(T) / kEach;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      float v[kEach];
      unpack<type>(raw[i], v);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        if constexpr (sizeof(T) == 4) {
          out[i * kEach + j] = __float_as_uint(v[j]);
        } else if (j % 2 == 0) {
          out[(i * kEach + j) / 2] =
              byte_perm(__float_as_uint(v[j]), __float_as_uint(v[j + 1]), 0x7632);
        }
      }
    }
  }
}

// Calls f with the type as a constant; it is one that T holds.
template <typename T, typename F>
__device__ inline void with_held_type(DType type, const F& f) {
  if (type == DType::kE4M3) return f(std::integral_constant<DType, DType::kE4M3>());
  if (type == DType::kE5M2) return f(std::integral_constant<DType, DType::kE5M2>());
  if constexpr (std::is_same_v<T, __half>) f(std::integral_constant<DType, DType::kF16>());
  if constexpr (std::is_same_v<T, Bf16>) f(std::integral_constant<DType, DType::kBF16>());
  if constexpr (std::is_same_v<T, float>) {
    if (type == DType::kBF16) return f(std::integral_constant<DType, DType::kBF16>());
    if (type == DType::kF16) return f(std::integral_constant<DType, DType::kF16>());
    f(std::integral_constant<DType, DType::kF32>());
  }
}

}  // namespace mate::gpu::portable
