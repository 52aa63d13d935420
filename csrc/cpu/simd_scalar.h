// The same operations in plain C++ on four floats at a time, for machines without AVX2 and as a
// cross-check. Included inside the namespace of the instruction set.

constexpr int kLanes = 4;
constexpr int kRegisters = 16;
struct Vec {
  float x[kLanes];
};

template <typename Op>
inline Vec each(Op op) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.x[i] = op(i);
  return out;
}

inline Vec set1(float x) {
  return each([&](int) { return x; });
}
inline Vec zero() { return set1(0.0f); }
inline Vec load(const float* p) {
  return each([&](int i) { return p[i]; });
}
inline void store(float* p, Vec x) {
  for (int i = 0; i < kLanes; ++i) p[i] = x.x[i];
}
inline void keep(Vec&) {}
inline Vec add(Vec a, Vec b) {
  return each([&](int i) { return a.x[i] + b.x[i]; });
}
inline Vec mul(Vec a, Vec b) {
  return each([&](int i) { return a.x[i] * b.x[i]; });
}
inline Vec div(Vec a, Vec b) {
  return each([&](int i) { return a.x[i] / b.x[i]; });
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return each([&](int i) { return a.x[i] * b.x[i] + c.x[i]; });
}
// As in SSE: the second operand where either is NaN.
inline Vec maximum(Vec a, Vec b) {
  return each([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
}
inline Vec absolute(Vec a) {
  return each([&](int i) { return bits_to_float(float_to_bits(a.x[i]) & 0x7fffffff); });
}

inline void reduce4(const Vec (&v)[4], float (&sums)[4]) {
  for (int i = 0; i < 4; ++i) sums[i] = (v[i].x[0] + v[i].x[1]) + (v[i].x[2] + v[i].x[3]);
}

inline void transpose(Vec (&v)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) std::swap(v[i].x[j], v[j].x[i]);
  }
}

template <DType type>
inline float decode1(const void* p, int64_t i) {
  if constexpr (type == DType::kE4M3) {
    return fp8_tables().e4m3_over_256[static_cast<const uint8_t*>(p)[i]];
  } else if constexpr (type == DType::kE5M2) {
    return fp8_tables().e5m2[static_cast<const uint8_t*>(p)[i]];
  } else if constexpr (type == DType::kBF16) {
    return decode_bf16(static_cast<const uint16_t*>(p)[i]);
  } else if constexpr (type == DType::kF16) {
    return decode_f16(static_cast<const uint16_t*>(p)[i]);
  } else {
    return static_cast<const float*>(p)[i];
  }
}

// Decode 16 consecutive elements; e4m3 comes out divided by 256.
template <DType type>
inline void decode16(const void* p, Vec (&v)[4]) {
  for (int i = 0; i < 4; ++i) {
    v[i] = each([&](int lane) { return decode1<type>(p, 4 * i + lane); });
  }
}

template <DType type>
inline void decode32(const void* p, Vec (&v)[8]) {
  for (int i = 0; i < 8; ++i) {
    v[i] = each([&](int lane) { return decode1<type>(p, 4 * i + lane); });
  }
}

// No decoding by way of subnormal numbers.
constexpr bool subnormals_are_fast() { return false; }
inline void decode32_tiny(const void*, Vec (&v)[8]) {
  for (Vec& x : v) x = zero();
}

// Packed weights are for speed.
constexpr bool reads_packed() { return false; }
struct WithSubnormals {};
template <int k>
inline void decode_column_tiny(const void*, Vec (&v)[4]) {
  for (Vec& x : v) x = zero();
}

// The tables decode NaN codes themselves.
inline bool has_nan16(const void*) { return false; }
struct NanWatch {
  void look32(const void*) {}
  bool found() const { return false; }
};

inline void store_bf16(uint16_t* p, Vec x) {
  for (int i = 0; i < kLanes; ++i) p[i] = encode_bf16(x.x[i]);
}
inline void store_f16(uint16_t* p, Vec x) {
  for (int i = 0; i < kLanes; ++i) p[i] = encode_f16(x.x[i]);
}

// to[j][i] = byte j of row i, for 16 rows of 16 bytes.
inline void transpose16(const char* rows, int64_t row_stride, char (&to)[16][16]) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) to[j][i] = rows[i * row_stride + j];
  }
}

inline Vec minimum(Vec a, Vec b) {
  return each([&](int i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
}
inline Vec where_negative(Vec x, Vec yes, Vec no) {
  return each([&](int i) { return float_to_bits(x.x[i]) >> 31 ? yes.x[i] : no.x[i]; });
}

// Numbers that are not negative, compared as integers: NaN is larger than any other.
inline float larger_of(float a, float b) { return float_to_bits(a) > float_to_bits(b) ? a : b; }
inline Vec larger(Vec a, Vec b) {
  return each([&](int i) { return larger_of(a.x[i], b.x[i]); });
}
inline float largest(Vec v) {
  return larger_of(larger_of(v.x[0], v.x[1]), larger_of(v.x[2], v.x[3]));
}

inline Vec exponential(Vec v) {
  return each([&](int i) { return std::exp(v.x[i]); });
}

template <DType type>
inline void store_fp8(uint8_t* p, Vec v) {
  for (int i = 0; i < kLanes; ++i) {
    p[i] = type == DType::kE4M3 ? encode_e4m3(v.x[i]) : encode_e5m2(v.x[i]);
  }
}

template <DType type>
inline void store16_in_range(uint8_t* p, const Vec (&x)[4]) {
  for (int i = 0; i < 4; ++i) store_fp8<type>(p + i * kLanes, x[i]);
}

// Bit i: lane i of x is not less than that of y, as NaN never is.
inline unsigned not_less(Vec x, Vec y) {
  unsigned mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= static_cast<unsigned>(!(x.x[i] < y.x[i])) << i;
  return mask;
}

// Writes first + i for each bit i of mask, ascending, and returns how many; what else it writes is
// within kLanes elements.
inline int put_lanes(int32_t* to, unsigned mask, int32_t first) {
  int count = 0;
  for (int i = 0; i < kLanes; ++i) {
    to[count] = first + i;
    count += mask >> i & 1;
  }
  return count;
}
