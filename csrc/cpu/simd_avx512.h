// Vectors of float32 for AVX-512 F + BW + VL + DQ. Included inside the namespace of the instruction
// set.

constexpr int kLanes = 16;
constexpr int kRegisters = 32;
using Vec = __m512;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec set1(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
// Holds a loaded value in its register; compilers else load it again for each use.
inline void keep(Vec& x) { asm("" : "+v"(x)); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec minimum(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec absolute(Vec a) { return _mm512_abs_ps(a); }
inline Vec nearest(Vec x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec where_negative(Vec x, Vec yes, Vec no) {
  return _mm512_mask_mov_ps(no, _mm512_movepi32_mask(_mm512_castps_si512(x)), yes);
}

// Sums of the lanes of four vectors; the order of additions is the same for each.
inline void reduce4(const Vec (&v)[4], float (&sums)[4]) {
  Vec ab = add(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  Vec cd = add(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  Vec abcd = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

// Turns 16 vectors of one column each into 16 vectors of one row each.
inline void transpose(Vec (&v)[16]) {
  Vec t[16], u[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  // Quarter q of u[4 g + i] is row 4 q + i of columns 4 g to 4 g + 3.
  for (int i = 0; i < 4; ++i) {
    Vec even_low = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
    Vec even_high = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
    Vec odd_low = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
    Vec odd_high = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
    v[i] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    v[i + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    v[i + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

// Decode 16 consecutive elements. e4m3 comes out divided by 256 with NaN codes read as 480 / 256:
// sign-extended bytes shifted by 7 are float16 bits of an exponent 8 too small, subnormals
// included.
template <DType type>
inline void decode16(const void* p, Vec (&v)[1]) {
  if constexpr (type == DType::kE4M3) {
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    v[0] = _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(wide, 7),
                                            _mm256_set1_epi16(static_cast<short>(0xbfff))));
  } else if constexpr (type == DType::kE5M2) {
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    v[0] = _mm512_cvtph_ps(_mm256_slli_epi16(wide, 8));
  } else if constexpr (type == DType::kBF16) {
    __m256i codes = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    v[0] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(codes), 16));
  } else if constexpr (type == DType::kF16) {
    v[0] = _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  } else {
    v[0] = load(static_cast<const float*>(p));
  }
}

template <DType type>
inline void decode32(const void* p, Vec (&v)[2]) {
  Vec lo[1], hi[1];
  decode16<type>(p, lo);
  decode16<type>(static_cast<const char*>(p) + 16 * size_of(type), hi);
  v[0] = lo[0], v[1] = hi[0];
}

// No decoding by way of subnormal numbers.
constexpr bool subnormals_are_fast() { return false; }
inline void decode32_tiny(const void*, Vec (&v)[2]) {
  for (Vec& x : v) x = zero();
}

#include "cpu/subnormals.h"

inline bool reads_packed() { return subnormals_at_full_speed(); }

template <int k>
inline void decode_column_tiny(const void* dwords, Vec (&v)[1]) {
  __m512i x = _mm512_loadu_si512(dwords);
  if constexpr (k < 3) x = _mm512_slli_epi32(x, 24 - 8 * k);
  v[0] = _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_srai_epi32(x, 4), _mm512_set1_epi32(static_cast<int>(0x87f00000))));
}

#include "cpu/nan_codes.h"

inline void store_bf16(uint16_t* p, Vec x) {
  __m512i bits = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

inline void store_f16(uint16_t* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// to[j][i] = byte j of row i, for 16 rows of 16 bytes.
inline void transpose16(const char* rows, int64_t row_stride, char (&to)[16][16]) {
  auto row = [&](int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + i * row_stride));
  };
  __m512i x[4];  // rows i, 4 + i, 8 + i, 12 + i
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_castsi128_si512(row(i));
    x[i] = _mm512_inserti32x4(x[i], row(4 + i), 1);
    x[i] = _mm512_inserti32x4(x[i], row(8 + i), 2);
    x[i] = _mm512_inserti32x4(x[i], row(12 + i), 3);
  }
  // Four neighbouring rows of a column to a word, then the words of four columns in order.
  __m512i ab_low = _mm512_unpacklo_epi8(x[0], x[1]), ab_high = _mm512_unpackhi_epi8(x[0], x[1]);
  __m512i cd_low = _mm512_unpacklo_epi8(x[2], x[3]), cd_high = _mm512_unpackhi_epi8(x[2], x[3]);
  const __m512i words[4] = {
      _mm512_unpacklo_epi16(ab_low, cd_low), _mm512_unpackhi_epi16(ab_low, cd_low),
      _mm512_unpacklo_epi16(ab_high, cd_high), _mm512_unpackhi_epi16(ab_high, cd_high)};
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int i = 0; i < 4; ++i) {
    _mm512_store_si512(to[4 * i], _mm512_permutexvar_epi32(order, words[i]));
  }
}

// Numbers that are not negative, compared as integers: NaN is larger than any other.
inline Vec larger(Vec a, Vec b) {
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
inline float largest(Vec x) {
  return bits_to_float(static_cast<uint32_t>(_mm512_reduce_max_epi32(_mm512_castps_si512(x))));
}

inline Vec times_power(Vec x, Vec exponent) { return _mm512_scalef_ps(x, exponent); }
#include "cpu/exponential.inl"

// Codes of encode_e4m3 / encode_e5m2 for one vector.
template <DType type>
inline void store_fp8(uint8_t* p, Vec x) {
  constexpr bool e4m3 = type == DType::kE4M3;
  constexpr int shift = e4m3 ? 20 : 21;
  __m512i bits = _mm512_castps_si512(x);
  __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  __m512i m = _mm512_min_epi32(magnitude, _mm512_set1_epi32(e4m3 ? 0x43e00000 : 0x47600000));
  // Normal: round the mantissa to even and move the exponent's bias.
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(m, shift), _mm512_set1_epi32(1));
  __m512i half = _mm512_set1_epi32((1 << (shift - 1)) - 1 - ((e4m3 ? 120 : 112) << 23));
  __m512i code = _mm512_srai_epi32(_mm512_add_epi32(m, _mm512_add_epi32(odd, half)), shift);
  // Subnormal: an addition leaves the code in the last bits.
  Vec shifted = add(_mm512_castsi512_ps(m), set1(e4m3 ? 16384.0f : 128.0f));
  const __mmask16 tiny =
      _mm512_cmplt_epi32_mask(m, _mm512_set1_epi32(e4m3 ? 0x3c800000 : 0x38800000));
  code = _mm512_mask_mov_epi32(code, tiny, _mm512_castps_si512(shifted));
  // NaN, and the infinity of e5m2.
  const __m512i infinity = _mm512_set1_epi32(0x7f800000);
  if (!e4m3) {
    code = _mm512_mask_mov_epi32(code, _mm512_cmpeq_epi32_mask(magnitude, infinity),
                                 _mm512_set1_epi32(0x7c));
  }
  code = _mm512_mask_mov_epi32(code, _mm512_cmpgt_epi32_mask(magnitude, infinity),
                               _mm512_set1_epi32(0x7f));
  __m512i sign = _mm512_slli_epi32(_mm512_srli_epi32(bits, 31), 7);
  code = _mm512_or_si512(_mm512_and_si512(code, _mm512_set1_epi32(0x7f)), sign);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(code));
}

// The same for 16 finite numbers that round to finite codes, in half the time. Adding and taking
// away a number whose last place is the code's rounds to even, subnormals included; the result is
// exact in float16, whose bits hold the code.
template <DType type>
inline void store16_in_range(uint8_t* p, const Vec (&x)[1]) {
  constexpr bool e4m3 = type == DType::kE4M3;
  Vec power = maximum(_mm512_and_ps(x[0], set1(INFINITY)), set1(e4m3 ? 0x1p-6f : 0x1p-14f));
  Vec shift = mul(power, set1(e4m3 ? 0x1.8p20f : 0x1.8p21f));
  Vec rounded = _mm512_sub_ps(add(x[0], shift), shift);
  rounded = _mm512_or_ps(rounded, _mm512_and_ps(x[0], set1(-0.0f)));
  if (e4m3) rounded = mul(rounded, set1(0x1p-8f));
  __m256i halves = _mm512_cvtps_ph(rounded, _MM_FROUND_TO_NEAREST_INT);
  if (e4m3) {
    __m256i sign = _mm256_and_si256(_mm256_srli_epi16(halves, 8), _mm256_set1_epi16(0x80));
    __m256i magnitude = _mm256_and_si256(_mm256_srli_epi16(halves, 7), _mm256_set1_epi16(0x7f));
    halves = _mm256_or_si256(sign, magnitude);
  } else {
    halves = _mm256_srli_epi16(halves, 8);
  }
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtepi16_epi8(halves));
}

// Bit i: lane i of x is not less than that of y, as NaN never is.
inline unsigned not_less(Vec x, Vec y) { return _mm512_cmp_ps_mask(x, y, _CMP_NLT_UQ); }

// Writes first + i for each bit i of mask, ascending, and returns how many; what else it writes is
// within kLanes elements. Compressed in the register: into memory that takes far longer.
inline int put_lanes(int32_t* to, unsigned mask, int32_t first) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i numbers = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), numbers));
  return __builtin_popcount(mask);
}
