#pragma once

struct __half {
  unsigned short bits;
};
__attribute__((device)) float __half2float(__half);
__attribute__((device)) __half __float2half_rn(float);
