// Bfloat16 for g++.
#pragma once

#include <cstring>

struct __mt_bfloat16 {
  unsigned short bits;
};

inline float __bfloat162float(__mt_bfloat16 x) {
  const unsigned bits = static_cast<unsigned>(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof(bits));
  return value;
}
inline __mt_bfloat16 __float2bfloat16_rn(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof(x));
  if (x != x) return {0x7fff};
  return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
