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

// Codes to BF16 by two look-ups, 64 at a time, NaN and subnormals included.
template <DType type>
class Bf16Decoder {
 public:
  Bf16Decoder() {
    static constexpr Bf16Codes<type> kCodes;
    for (int i = 0; i < 2; ++i) {
      low_[i] = _mm512_load_si512(kCodes.low + 64 * i);
      high_[i] = _mm512_load_si512(kCodes.high + 64 * i);
    }
  }

  // Of each 16 codes the first 8 go to `first`, the others to `second`.
  __attribute__((always_inline)) void decode(__m512i codes, __m512i& first, __m512i& second) const {
    // The look-ups take no notice of the sign bit.
    const __m512i low = _mm512_permutex2var_epi8(low_[0], codes, low_[1]);
    const __m512i magnitude = _mm512_permutex2var_epi8(high_[0], codes, high_[1]);
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, codes, sign, 0xf8);  // a | (b & c)
    first = _mm512_unpacklo_epi8(low, high);
    second = _mm512_unpackhi_epi8(low, high);
  }

 private:
  __m512i low_[2], high_[2];
};

constexpr int64_t kBf16Step = 64;
inline int64_t whole_bf16_steps(int64_t count) { return ceil_div(count, kBf16Step) * kBf16Step; }

// Decodes a row of codes, filled up with zeros to whole steps. The order within a step is that of
// the decoder, [0, 8) [16, 24) [32, 40) [48, 56) and then the others: sums of products do not mind
// where both sides have it.
template <DType type>
inline void decode_to_bf16(uint16_t* to, const char* codes, int64_t count) {
  const Bf16Decoder<type> decoder;
  for (int64_t k = 0; k < count; k += kBf16Step) {
    const int64_t left = count - k;
    const __mmask64 mask = left < kBf16Step ? (uint64_t{1} << left) - 1 : ~uint64_t{0};
    __m512i first, second;
    decoder.decode(_mm512_maskz_loadu_epi8(mask, codes + k), first, second);
    _mm512_storeu_si512(to + k, first);
    _mm512_storeu_si512(to + k + 32, second);
  }
}
