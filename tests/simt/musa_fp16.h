// Halves for g++.
#pragma once

#include <cstring>

struct __half {
  unsigned short bits;
};

inline float __half2float(__half x) {
  _Float16 value;
  memcpy(&value, &x, sizeof(x));
  return value;
}
inline __half __float2half_rn(float x) {
  const _Float16 value = static_cast<_Float16>(x);
  __half half;
  memcpy(&half, &value, sizeof(half));
  return half;
}
