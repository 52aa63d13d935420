// NaN codes among e4m3 bytes, with AVX2. Included inside the namespace of the instruction set.

// Whether 16 e4m3 bytes hold a NaN code.
inline bool has_nan16(const void* p) {
  __m128i magnitudes =
      _mm_and_si128(_mm_loadu_si128(static_cast<const __m128i*>(p)), _mm_set1_epi8(0x7f));
  return _mm_movemask_epi8(_mm_cmpeq_epi8(magnitudes, _mm_set1_epi8(0x7f))) != 0;
}

// Remembers whether a NaN code passed among e4m3 bytes, 32 at a time: 0x7f is the largest signed
// byte, 0xff the largest unsigned one.
struct NanWatch {
  __m256i positive = _mm256_setzero_si256(), negative = _mm256_setzero_si256();
  void look32(const void* p) {
    __m256i codes = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    positive = _mm256_max_epi8(positive, codes);
    negative = _mm256_max_epu8(negative, codes);
  }
  bool found() const {
    __m256i a = _mm256_cmpeq_epi8(positive, _mm256_set1_epi8(0x7f));
    __m256i b = _mm256_cmpeq_epi8(negative, _mm256_set1_epi8(static_cast<char>(0xff)));
    return !_mm256_testz_si256(_mm256_or_si256(a, b), _mm256_set1_epi8(-1));
  }
};
