// Register tiles: sums over k of products of float32 rows of A with rows of B. Both kinds add the
// products of one result in the same order, whatever other rows are computed beside it.

constexpr int kRows = 3, kCols = 4;  // 12 accumulators, of 16 vector registers

// c[m][n] += A rows (float32, lda apart) times kCols rows of B (float32, ldb apart).
template <int rows>
inline void dot_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth,
                     float* c, int64_t ldc) {
  Vec acc[rows][kCols];
  for (auto& row : acc) {
    for (Vec& v : row) v = zero();
  }
  for (int64_t k = 0; k < depth; k += kLanes) {
    Vec va[rows];
    for (int m = 0; m < rows; ++m) va[m] = load(a + m * lda + k);
    for (int n = 0; n < kCols; ++n) {
      Vec vb = load(b + n * ldb + k);
      keep(vb);
      for (int m = 0; m < rows; ++m) acc[m][n] = fma(va[m], vb, acc[m][n]);
    }
  }
  for (int m = 0; m < rows; ++m) {
    float sums[kCols];
    reduce4(acc[m], sums);
    for (int n = 0; n < kCols; ++n) c[m * ldc + n] += sums[n];
  }
}

inline bool any_nan(const char* codes, int64_t count) {
  bool found = false;
  for (int64_t k = 0; k < count; k += 16) found |= has_nan16(codes + k);
  return found;
}

// The same with B decoded in registers from kCols rows of codes; depth is a multiple of kStep.
template <DType type, int rows>
inline void decode_tile(const float* a, int64_t lda, const char* const (&b)[kCols], int64_t depth,
                        float* c, int64_t ldc) {
  Vec acc[rows][kCols];
  for (auto& row : acc) {
    for (Vec& v : row) v = zero();
  }
  NanWatch watch;
  for (int64_t k = 0; k < depth; k += kStep) {
    for (int n = 0; n < kCols; ++n) {
      const char* codes = b[n] + k * size_of(type);
      if constexpr (type == DType::kE4M3) watch.look32(codes);
      for (int part = 0; part < kStep; part += 16) {
        Vec vb[16 / kLanes];
        decode16<type>(codes + part * size_of(type), vb);
        for (int i = 0; i < 16 / kLanes; ++i) {
          for (int m = 0; m < rows; ++m) {
            acc[m][n] = fma(load(a + m * lda + k + part + i * kLanes), vb[i], acc[m][n]);
          }
        }
      }
    }
  }
  for (int m = 0; m < rows; ++m) {
    float sums[kCols];
    reduce4(acc[m], sums);
    for (int n = 0; n < kCols; ++n) c[m * ldc + n] += sums[n];
  }
  if (watch.found()) {
    for (int n = 0; n < kCols; ++n) {
      if (!any_nan(b[n], depth)) continue;
      for (int m = 0; m < rows; ++m) c[m * ldc + n] = NAN;
    }
  }
}

// Calls f with the rows of the next tile, as a compile-time constant.
template <typename F>
inline void with_rows(int64_t rows, const F& f) {
  static_assert(kRows == 3);
  if (rows >= 3) return f(std::integral_constant<int, 3>());
  if (rows == 2) return f(std::integral_constant<int, 2>());
  return f(std::integral_constant<int, 1>());
}
