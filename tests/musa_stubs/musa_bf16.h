#pragma once

struct __mt_bfloat16 {
  unsigned short bits;
};
__attribute__((device)) float __bfloat162float(__mt_bfloat16);
__attribute__((device)) __mt_bfloat16 __float2bfloat16_rn(float);
