#include "cpu/fp8.h"

namespace mate::cpu {
namespace {

Fp8Tables make_tables() {
  Fp8Tables tables;
  for (int code = 0; code < 256; ++code) {
    float sign = code & 0x80 ? -1.0f : 1.0f;
    int exponent = (code >> 3) & 15, mantissa = code & 7;
    float value = exponent ? std::ldexp(1.0f + mantissa / 8.0f, exponent - 7)
                           : std::ldexp(mantissa / 8.0f, -6);
    tables.e4m3_over_256[code] = (code & 0x7f) == 0x7f ? NAN : sign * value / 256;
    tables.e5m2[code] = decode_f16(static_cast<uint16_t>(code << 8));
  }
  return tables;
}

const Fp8Tables kTables = make_tables();

}  // namespace

const Fp8Tables& fp8_tables() { return kTables; }

}  // namespace mate::cpu
