// FP8 codes one at a time: tables for decoding, round-to-nearest-even for encoding (OCP OFP8).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mate::cpu {

// Value of each code, divided by 256 for e4m3: the vector decoders leave that factor to the scales
// and all instruction sets share one convention.
struct Fp8Tables {
  float e4m3_over_256[256];
  float e5m2[256];
};
const Fp8Tables& fp8_tables();

inline bool is_nan_code(uint8_t e4m3) { return (e4m3 & 0x7f) == 0x7f; }

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Nearest e4m3fn code, ties to even; magnitudes beyond 448 saturate, NaN stays NaN.
inline uint8_t encode_e4m3(float value) {
  uint32_t bits = float_to_bits(value);
  uint8_t sign = static_cast<uint8_t>(bits >> 24) & 0x80;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7f;
  if (bits >= 0x43e00000) return sign | 0x7e;  // 448 and above
  if (bits < 0x3c800000) {                     // below 2^-6: subnormal, steps of 2^-9
    // Adding 2^14 leaves a unit in the last place of 2^-9: the hardware rounds to even.
    float shifted = bits_to_float(bits) + 16384.0f;
    return sign | static_cast<uint8_t>(float_to_bits(shifted) & 0xff);
  }
  bits += 0x0007ffff + ((bits >> 20) & 1);
  return sign | static_cast<uint8_t>((bits >> 20) - ((127 - 7) << 3));
}

// Nearest e5m2 code, ties to even; beyond 57344 saturates to the largest finite value,
// infinities and NaN are kept.
inline uint8_t encode_e5m2(float value) {
  uint32_t bits = float_to_bits(value);
  uint8_t sign = static_cast<uint8_t>(bits >> 24) & 0x80;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7f;
  if (bits == 0x7f800000) return sign | 0x7c;
  if (bits >= 0x47600000) return sign | 0x7b;
  if (bits < 0x38800000) {  // below 2^-14: subnormal, steps of 2^-16
    float shifted = bits_to_float(bits) + 128.0f;
    return sign | static_cast<uint8_t>(float_to_bits(shifted) & 0xff);
  }
  bits += 0x000fffff + ((bits >> 21) & 1);
  return sign | static_cast<uint8_t>((bits >> 21) - ((127 - 15) << 2));
}

inline uint16_t encode_bf16(float value) {
  uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16) | 0x40;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float decode_bf16(uint16_t code) { return bits_to_float(static_cast<uint32_t>(code) << 16); }

inline float decode_f16(uint16_t code) {
  uint32_t sign = static_cast<uint32_t>(code & 0x8000) << 16;
  uint32_t magnitude = code & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // Moving the code into place scales by 2^-112; the product is exact, subnormals included.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}

inline uint16_t encode_f16(float value) {
  uint32_t bits = float_to_bits(value);
  uint16_t sign = static_cast<uint16_t>(bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds past 65504
  if (bits < 0x38800000) {                       // subnormal, steps of 2^-24
    return sign | static_cast<uint16_t>(float_to_bits(bits_to_float(bits) + 0.5f) & 0xffff);
  }
  bits += 0x0fff + ((bits >> 13) & 1);
  return sign | static_cast<uint16_t>((bits >> 13) - ((127 - 15) << 10));
}

}  // namespace mate::cpu
