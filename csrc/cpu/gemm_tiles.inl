// Register tiles: sums over k of products of float32 rows of A with rows of B. All kinds add the
// products of one result in the same order, whatever other rows are computed beside it.

// Few rows of A meet kStreams rows of B; more rows go through tiles of kRows x kCols.
constexpr int kStreams = 4, kStreamRows = kRegisters == 32 ? 6 : 3;
// Three quarters of the vector registers accumulate.
constexpr int kRows = kRegisters == 32 ? 6 : 4, kCols = kRegisters == 32 ? 4 : 3;

// c[m][n] += sums of the lanes of acc[m][n]. Inlined always: a call would send acc through memory.
template <int rows, int cols>
__attribute__((always_inline)) inline void add_sums(const Vec (&acc)[rows][cols], float* c,
                                                    int64_t ldc) {
  constexpr int count = rows * cols;
  constexpr auto at = [](int i) { return i < count ? i : count - 1; };
  float sums[count + 3];
  for (int i = 0; i < count; i += 4) {
    Vec four[4];
    for (int j = 0; j < 4; ++j) four[j] = acc[at(i + j) / cols][at(i + j) % cols];
    reduce4(four, *reinterpret_cast<float (*)[4]>(sums + i));
  }
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < cols; ++n) c[m * ldc + n] += sums[m * cols + n];
  }
}

// c[m][n] += A rows (float32, lda apart) times cols rows of B (float32, ldb apart).
template <int rows, int cols>
inline void dot_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth,
                     float* c, int64_t ldc) {
  Vec acc[rows][cols];
  clear(acc);
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; k += kLanes) {
    Vec vb[cols];
    for (int n = 0; n < cols; ++n) {
      vb[n] = load(b + n * ldb + k);
      keep(vb[n]);
    }
    for (int m = 0; m < rows; ++m) {
      Vec va = load(a + m * lda + k);
      keep(va);
      for (int n = 0; n < cols; ++n) acc[m][n] = fma(va, vb[n], acc[m][n]);
    }
  }
  add_sums(acc, c, ldc);
}

inline bool any_nan(const char* codes, int64_t count) {
  bool found = false;
  for (int64_t k = 0; k < count; k += 16) found |= has_nan16(codes + k);
  return found;
}

// Codes `ahead` bytes further on are fetched for what comes next.
template <DType type>
inline void fetch_step(const char* codes, int64_t ahead) {
  for (int64_t at = 0; at < kStep * size_of(type); at += 64) {
    __builtin_prefetch(codes + ahead + at, 0, 2);
  }
}

// How codes of B become floats: `tiny` leaves 2^120 out of e4m3, where that is faster.
template <DType type, bool tiny>
inline void decode_step(const char* codes, Vec (&v)[kStep / kLanes]) {
  if constexpr (tiny) {
    static_assert(type == DType::kE4M3);
    decode32_tiny(codes, v);
  } else {
    decode32<type>(codes, v);
  }
}

// dst[0 .. depth) = decoded codes; depth is a multiple of kStep.
template <DType type, bool tiny>
inline void decode_row(float* dst, const char* codes, int64_t depth, int64_t ahead) {
  NanWatch watch;
  for (int64_t k = 0; k < depth; k += kStep) {
    const char* from = codes + k * size_of(type);
    fetch_step<type>(from, ahead);
    if constexpr (type == DType::kE4M3) watch.look32(from);
    Vec v[kStep / kLanes];
    decode_step<type, tiny>(from, v);
    for (int i = 0; i < kStep / kLanes; ++i) store(dst + k + i * kLanes, v[i]);
  }
  for (int64_t k = 0; watch.found() && k < depth; ++k) {
    if (is_nan_code(static_cast<uint8_t>(codes[k]))) dst[k] = NAN;
  }
}

// dot_tile with B decoded in registers from rows of codes.
template <DType type, bool tiny, int rows, int cols>
inline void stream_tile(const float* a, int64_t lda, const char* const (&b)[cols], int64_t depth,
                        int64_t ahead, float* c, int64_t ldc) {
  Vec acc[rows][cols];
  clear(acc);
  NanWatch watch;
  for (int64_t k = 0; k < depth; k += kStep) {
    for (int n = 0; n < cols; ++n) {
      const char* codes = b[n] + k * size_of(type);
      fetch_step<type>(codes, ahead);
      if constexpr (type == DType::kE4M3) watch.look32(codes);
      Vec vb[kStep / kLanes];
      decode_step<type, tiny>(codes, vb);
      for (int i = 0; i < kStep / kLanes; ++i) {
        for (int m = 0; m < rows; ++m) {
          acc[m][n] = fma(load(a + m * lda + k + i * kLanes), vb[i], acc[m][n]);
        }
      }
    }
  }
  add_sums(acc, c, ldc);
  for (int n = 0; watch.found() && n < cols; ++n) {
    if (!any_nan(b[n], depth)) continue;
    for (int m = 0; m < rows; ++m) c[m * ldc + n] = NAN;
  }
}
