// Vectors of float32 for AVX2 + FMA + F16C. Included inside the namespace of the instruction set.

constexpr int kLanes = 8;
constexpr int kRegisters = 16;
using Vec = __m256;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec set1(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
// Holds a loaded value in its register; compilers else load it again for each use.
inline void keep(Vec& x) { asm("" : "+x"(x)); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec minimum(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec absolute(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline Vec nearest(Vec x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec where_negative(Vec x, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, x); }

// Sums of the lanes of four vectors; the order of additions is the same for each.
inline void reduce4(const Vec (&v)[4], float (&sums)[4]) {
  Vec ab = _mm256_hadd_ps(v[0], v[1]), cd = _mm256_hadd_ps(v[2], v[3]);
  Vec abcd = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}

// Turns 8 vectors of one column each into 8 vectors of one row each.
inline void transpose(Vec (&v)[8]) {
  Vec t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

inline void halves_to_floats(__m256i halves, Vec& lo, Vec& hi) {
  lo = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
  hi = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
}

// Decode 16 consecutive elements. e4m3 comes out divided by 256 with NaN codes read as 480 / 256:
// sign-extended bytes shifted by 7 are float16 bits of an exponent 8 too small, subnormals
// included.
template <DType type>
inline void decode16(const void* p, Vec (&v)[2]) {
  if constexpr (type == DType::kE4M3) {
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    halves_to_floats(
        _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<short>(0xbfff))),
        v[0], v[1]);
  } else if constexpr (type == DType::kE5M2) {
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    halves_to_floats(_mm256_slli_epi16(wide, 8), v[0], v[1]);
  } else if constexpr (type == DType::kBF16) {
    for (int i = 0; i < 2; ++i) {
      __m128i codes = _mm_loadu_si128(static_cast<const __m128i*>(p) + i);
      v[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(codes), 16));
    }
  } else if constexpr (type == DType::kF16) {
    halves_to_floats(_mm256_loadu_si256(static_cast<const __m256i*>(p)), v[0], v[1]);
  } else {
    v[0] = load(static_cast<const float*>(p));
    v[1] = load(static_cast<const float*>(p) + 8);
  }
}

// The same for 32 elements. Bytes in the upper halves of words are float16 bits after a shift that
// keeps the sign; two interleavings cost less than widening.
template <DType type>
inline void decode32(const void* p, Vec (&v)[4]) {
  if constexpr (type == DType::kE4M3 || type == DType::kE5M2) {
    const __m256i codes = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    __m256i even = _mm256_unpacklo_epi8(_mm256_setzero_si256(), codes);
    __m256i odd = _mm256_unpackhi_epi8(_mm256_setzero_si256(), codes);
    if constexpr (type == DType::kE4M3) {
      const __m256i bits = _mm256_set1_epi16(static_cast<short>(0xbf80));
      even = _mm256_and_si256(_mm256_srai_epi16(even, 1), bits);
      odd = _mm256_and_si256(_mm256_srai_epi16(odd, 1), bits);
    }
    halves_to_floats(even, v[0], v[2]);
    halves_to_floats(odd, v[1], v[3]);
  } else {
    Vec lo[2], hi[2];
    decode16<type>(p, lo);
    decode16<type>(static_cast<const char*>(p) + 16 * size_of(type), hi);
    v[0] = lo[0], v[1] = lo[1], v[2] = hi[0], v[3] = hi[1];
  }
}

#include "cpu/subnormals.h"

// Whether they are on, too.
inline bool subnormals_are_fast() { return subnormals_at_full_speed() && !flushes_subnormals(); }

// 32 e4m3 codes over 2^120, with NaN codes read as numbers: sign and magnitude moved to where
// float32 has them, subnormals included. Half the work of decode32.
inline void decode32_tiny(const void* p, Vec (&v)[4]) {
  for (int i = 0; i < 4; ++i) {
    const __m256i wide = _mm256_cvtepi8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(static_cast<const char*>(p) + 8 * i)));
    v[i] = _mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(wide, 20),
                                                _mm256_set1_epi32(static_cast<int>(0x87f00000))));
  }
}

// Packed weights are decoded that way only.
inline bool reads_packed() { return subnormals_at_full_speed(); }

// The code at byte k of each of 16 dwords, likewise over 2^120.
template <int k>
inline void decode_column_tiny(const void* dwords, Vec (&v)[2]) {
  for (int i = 0; i < 2; ++i) {
    __m256i x = _mm256_loadu_si256(static_cast<const __m256i*>(dwords) + i);
    if constexpr (k < 3) x = _mm256_slli_epi32(x, 24 - 8 * k);
    v[i] = _mm256_castsi256_ps(
        _mm256_and_si256(_mm256_srai_epi32(x, 4), _mm256_set1_epi32(static_cast<int>(0x87f00000))));
  }
}

#include "cpu/nan_codes.h"

inline void store_bf16(uint16_t* p, Vec x) {
  __m256i bits = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}

inline void store_f16(uint16_t* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// to[j][i] = byte j of row i, for 16 rows of 16 bytes: each round interleaves rows half the block
// apart.
inline void transpose16(const char* rows, int64_t row_stride, char (&to)[16][16]) {
  __m128i x[16], y[16];
  for (int i = 0; i < 16; ++i) {
    x[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + i * row_stride));
  }
  auto interleave = [](const __m128i(&from)[16], __m128i(&into)[16]) {
    for (int i = 0; i < 8; ++i) {
      into[2 * i] = _mm_unpacklo_epi8(from[i], from[i + 8]);
      into[2 * i + 1] = _mm_unpackhi_epi8(from[i], from[i + 8]);
    }
  };
  interleave(x, y);
  interleave(y, x);
  interleave(x, y);
  interleave(y, x);
  for (int i = 0; i < 16; ++i) _mm_store_si128(reinterpret_cast<__m128i*>(to[i]), x[i]);
}

// Numbers that are not negative, compared as integers: NaN is larger than any other.
inline Vec larger(Vec a, Vec b) {
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
inline float largest(Vec x) {
  x = larger(x, _mm256_permute2f128_ps(x, x, 1));
  x = larger(x, _mm256_permute_ps(x, 0x4e));
  return _mm256_cvtss_f32(larger(x, _mm256_permute_ps(x, 0xb1)));
}

// In two factors: one would not reach the smallest results.
inline Vec times_power(Vec x, Vec exponent) {
  __m256i power = _mm256_cvtps_epi32(exponent), half = _mm256_srai_epi32(power, 1);
  auto two_to = [](__m256i k) {
    __m256i biased = _mm256_add_epi32(k, _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  };
  return mul(mul(x, two_to(half)), two_to(_mm256_sub_epi32(power, half)));
}
#include "cpu/exponential.inl"

// Codes of encode_e4m3 / encode_e5m2 for one vector.
template <DType type>
inline void store_fp8(uint8_t* p, Vec x) {
  constexpr bool e4m3 = type == DType::kE4M3;
  constexpr int shift = e4m3 ? 20 : 21;
  __m256i bits = _mm256_castps_si256(x);
  __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  __m256i beyond = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(e4m3 ? 0x7f800000 : 0x7f7fffff));
  __m256i m = _mm256_min_epi32(magnitude, _mm256_set1_epi32(e4m3 ? 0x43e00000 : 0x47600000));
  // Normal: round the mantissa to even and move the exponent's bias.
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(m, shift), _mm256_set1_epi32(1));
  __m256i half = _mm256_set1_epi32((1 << (shift - 1)) - 1 - ((e4m3 ? 120 : 112) << 23));
  __m256i code = _mm256_srai_epi32(_mm256_add_epi32(m, _mm256_add_epi32(odd, half)), shift);
  // Subnormal: an addition leaves the code in the last bits.
  Vec shifted = add(_mm256_castsi256_ps(m), set1(e4m3 ? 16384.0f : 128.0f));
  __m256i tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(e4m3 ? 0x3c800000 : 0x38800000), m);
  code = _mm256_blendv_epi8(code, _mm256_castps_si256(shifted), tiny);
  // NaN, and the infinity of e5m2.
  __m256i special = _mm256_set1_epi32(0x7f);
  if (!e4m3) {
    __m256i infinite = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
    special = _mm256_blendv_epi8(special, _mm256_set1_epi32(0x7c), infinite);
  }
  code = _mm256_blendv_epi8(code, special, beyond);
  __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(bits, 31), 7);
  code = _mm256_or_si256(_mm256_and_si256(code, _mm256_set1_epi32(0x7f)), sign);
  __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}

// The same for 16 finite numbers that round to finite codes, in half the time. Adding and taking
// away a number whose last place is the code's rounds to even, subnormals included; the result is
// exact in float16, whose bits hold the code.
template <DType type>
inline void store16_in_range(uint8_t* p, const Vec (&x)[2]) {
  constexpr bool e4m3 = type == DType::kE4M3;
  const Vec sign_bit = set1(-0.0f), exponent_bits = set1(INFINITY);
  __m128i halves[2];
  for (int i = 0; i < 2; ++i) {
    Vec power = maximum(_mm256_and_ps(x[i], exponent_bits), set1(e4m3 ? 0x1p-6f : 0x1p-14f));
    Vec shift = mul(power, set1(e4m3 ? 0x1.8p20f : 0x1.8p21f));
    Vec rounded = _mm256_sub_ps(add(x[i], shift), shift);
    rounded = _mm256_or_ps(rounded, _mm256_and_ps(x[i], sign_bit));
    if (e4m3) rounded = mul(rounded, set1(0x1p-8f));
    halves[i] = _mm256_cvtps_ph(rounded, _MM_FROUND_TO_NEAREST_INT);
    if (e4m3) {
      __m128i sign = _mm_and_si128(_mm_srli_epi16(halves[i], 8), _mm_set1_epi16(0x80));
      __m128i magnitude = _mm_and_si128(_mm_srli_epi16(halves[i], 7), _mm_set1_epi16(0x7f));
      halves[i] = _mm_or_si128(sign, magnitude);
    } else {
      halves[i] = _mm_srli_epi16(halves[i], 8);
    }
  }
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(halves[0], halves[1]));
}

// Bit i: lane i of x is not less than that of y, as NaN never is.
inline unsigned not_less(Vec x, Vec y) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_NLT_UQ));
}

// Numbers of the bits set in each byte, ascending, one to a byte.
struct BitNumbers {
  uint64_t of[256];
  constexpr BitNumbers() : of() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int bit = 0, at = 0; bit < 8; ++bit) {
        if (mask >> bit & 1) of[mask] |= static_cast<uint64_t>(bit) << 8 * at++;
      }
    }
  }
};
constexpr BitNumbers kBitNumbers;

// Writes first + i for each bit i of mask, ascending, and returns how many; what else it writes is
// within kLanes elements.
inline int put_lanes(int32_t* to, unsigned mask, int32_t first) {
  __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kBitNumbers.of + mask));
  __m256i lanes = _mm256_add_epi32(_mm256_cvtepu8_epi32(bits), _mm256_set1_epi32(first));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), lanes);
  return __builtin_popcount(mask);
}
