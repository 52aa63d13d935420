// FP8 codes as BF16, exactly: BF16 has the exponents of float32, so that no code is subnormal.

// BF16 of a code without its sign.
template <DType type>
constexpr int bf16_of_code(int code) {
  constexpr bool e4m3 = type == DType::kE4M3;
  constexpr int width = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15;
  int exponent = code >> width, mantissa = code & ((1 << width) - 1);
  if (e4m3 && code == 0x7f) return 0x7fc0;
  if (!e4m3 && exponent == 31) return mantissa == 0 ? 0x7f80 : 0x7fc0;
  if (exponent == 0) {
    if (mantissa == 0) return 0;
    for (exponent = 1; mantissa >> width == 0; --exponent) mantissa *= 2;
    mantissa -= 1 << width;
  }
  return (exponent + 127 - bias) << 7 | mantissa << (7 - width);
}

template <DType type>
struct Bf16Codes {
  alignas(64) uint8_t low[128] = {}, high[128] = {};
  constexpr Bf16Codes() {
    for (int code = 0; code < 128; ++code) {
      low[code] = static_cast<uint8_t>(bf16_of_code<type>(code));
      high[code] = static_cast<uint8_t>(bf16_of_code<type>(code) >> 8);
    }
  }
};

constexpr int64_t kBf16Step = 64;
inline int64_t whole_bf16_steps(int64_t count) { return ceil_div(count, kBf16Step) * kBf16Step; }

// Decodes a row of codes, filled up with zeros to whole steps. The order within a step is that of
// the interleaving, [0, 8) [16, 24) [32, 40) [48, 56) and then the others: sums of products do not
// mind where both sides have it.
template <DType type>
inline void decode_to_bf16(uint16_t* to, const char* codes, int64_t count) {
  static constexpr Bf16Codes<type> kCodes;
  const __m512i low[2] = {_mm512_load_si512(kCodes.low), _mm512_load_si512(kCodes.low + 64)};
  const __m512i high[2] = {_mm512_load_si512(kCodes.high), _mm512_load_si512(kCodes.high + 64)};
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  for (int64_t k = 0; k < count; k += kBf16Step) {
    const int64_t left = count - k;
    const __mmask64 mask = left < kBf16Step ? (uint64_t{1} << left) - 1 : ~uint64_t{0};
    const __m512i x = _mm512_maskz_loadu_epi8(mask, codes + k);
    // The look-ups take no notice of the sign bit.
    const __m512i lows = _mm512_permutex2var_epi8(low[0], x, low[1]);
    const __m512i magnitudes = _mm512_permutex2var_epi8(high[0], x, high[1]);
    const __m512i highs = _mm512_or_si512(magnitudes, _mm512_and_si512(x, sign));
    _mm512_storeu_si512(to + k, _mm512_unpacklo_epi8(lows, highs));
    _mm512_storeu_si512(to + k + 32, _mm512_unpackhi_epi8(lows, highs));
  }
}
