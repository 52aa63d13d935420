// Products with packed e4m3 codes of B, none of them NaN. Lanes are columns and every sum runs
// along k, one product after the other whatever the number of rows, so that nothing is left to add
// across lanes.

// Rows of a tile, and those up to which decoding anew for each tile takes less time than writing
// panels.
constexpr int kPackedTileRows = 6, kPackedStreamRows = 24;
constexpr int kPackedVecs = kPackedRows / kLanes;
constexpr int64_t kPackedDepth = 256;  // k range that is read at a time
// What decode_column_tiny leaves out, but for what decode_factor says.
constexpr float kTinyToPlain = 0x1p112f;

// 16 columns of one k, from a line.
template <bool tiny, int k>
inline void decode_column(const char* line, Vec (&v)[kPackedVecs]) {
  decode_column_tiny<k>(line, v);
  if constexpr (!tiny) {
    for (Vec& x : v) x = mul(x, set1(kTinyToPlain));
  }
}

template <typename F>
inline void for_four(const F& f) {
  f(std::integral_constant<int, 0>());
  f(std::integral_constant<int, 1>());
  f(std::integral_constant<int, 2>());
  f(std::integral_constant<int, 3>());
}

// c[m][n] += A rows (float32, lda apart) times the columns of `groups` panels. Bytes that are `far`
// further on are fetched for what comes next.
template <bool tiny, int rows, int groups>
inline void packed_tile(const float* a, int64_t lda, const char* const (&panels)[groups],
                        int64_t depth, int64_t far, float* c, int64_t ldc) {
  constexpr int vecs = kPackedVecs;
  Vec acc[rows][groups * vecs];
  for (int m = 0; m < rows; ++m) {
    for (int v = 0; v < groups * vecs; ++v) acc[m][v] = load(c + m * ldc + v * kLanes);
  }
  for (int64_t k = 0; k < depth; k += 4) {
    for (int g = 0; g < groups; ++g) {
      const char* line = panels[g] + k * kPackedRows;
      __builtin_prefetch(line + far, 0, 2);
    }
    for_four([&](auto j) {
      for (int g = 0; g < groups; ++g) {
        Vec b[vecs];
        decode_column<tiny, j()>(panels[g] + k * kPackedRows, b);
        for (int m = 0; m < rows; ++m) {
          const Vec x = set1(a[m * lda + k + j()]);
          for (int v = 0; v < vecs; ++v) {
            Vec& sum = acc[m][g * vecs + v];
            sum = fma(x, b[v], sum);
          }
        }
      }
    });
  }
  for (int m = 0; m < rows; ++m) {
    for (int v = 0; v < groups * vecs; ++v) store(c + m * ldc + v * kLanes, acc[m][v]);
  }
}

// dst[k][16] = decoded codes of a panel.
template <bool tiny>
inline void decode_panel(float* dst, const char* panel, int64_t depth, int64_t far) {
  for (int64_t k = 0; k < depth; k += 4) {
    const char* line = panel + k * kPackedRows;
    __builtin_prefetch(line + far, 0, 2);
    for_four([&](auto j) {
      Vec b[kPackedVecs];
      decode_column<tiny, j()>(line, b);
      for (int v = 0; v < kPackedVecs; ++v) store(dst + (k + j()) * kPackedRows + v * kLanes, b[v]);
    });
  }
}

// c[m][n] += A rows times b[k][16].
template <int rows>
inline void panel_tile(const float* a, int64_t lda, const float* b, int64_t depth, float* c,
                       int64_t ldc) {
  Vec acc[rows][kPackedVecs];
  for (int m = 0; m < rows; ++m) {
    for (int v = 0; v < kPackedVecs; ++v) acc[m][v] = load(c + m * ldc + v * kLanes);
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    Vec y[kPackedVecs];
    for (int v = 0; v < kPackedVecs; ++v) {
      y[v] = load(b + k * kPackedRows + v * kLanes);
      keep(y[v]);
    }
    for (int m = 0; m < rows; ++m) {
      const Vec x = set1(a[m * lda + k]);
      for (int v = 0; v < kPackedVecs; ++v) acc[m][v] = fma(x, y[v], acc[m][v]);
    }
  }
  for (int m = 0; m < rows; ++m) {
    for (int v = 0; v < kPackedVecs; ++v) store(c + m * ldc + v * kLanes, acc[m][v]);
  }
}
