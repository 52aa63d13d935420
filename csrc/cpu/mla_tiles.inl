// Register tiles of attention: products of queries with rows, and weighted sums of rows. What is
// added for one head, in which order, does not depend on the heads and rows computed beside it.

constexpr int kSums = kRegisters / 4 * 3;  // accumulators
static_assert(kMlaTile % kSums == 0);

// sums[i * n + j] = a[i] . b[j], each in the same order of additions. The m vectors of a are held,
// those of b pass by.
template <int m, int n>
inline void dot_products(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth,
                         float (&sums)[kSums]) {
  static_assert(m * n <= kSums);
  constexpr int fours = (m * n + 3) / 4;
  Vec acc[fours][4];
  clear(acc);
  for (int64_t d = 0; d < depth; d += kLanes) {
    Vec x[m];
    for (int i = 0; i < m; ++i) x[i] = load(a + i * lda + d);
    for (int j = 0; j < n; ++j) {
      Vec y = load(b + j * ldb + d);
      keep(y);
      for (int i = 0; i < m; ++i) {
        Vec& sum = acc[(i * n + j) / 4][(i * n + j) % 4];
        sum = fma(x[i], y, sum);
      }
    }
  }
  for (int i = 0; i < fours; ++i) {
    float four[4];
    reduce4(acc[i], four);
    std::memcpy(sums + 4 * i, four, sizeof(four));
  }
}

// scores[t][h] = q[h] . rows[t]; rows and scores are there for whole steps.
template <int heads>
inline void score_rows(const float* q, const float* rows, int64_t ld, int64_t count, int64_t depth,
                       float* scores, int64_t lanes) {
  // More than 12 rows side by side are more than the processor reads ahead.
  constexpr int step = std::min(kSums / heads, 12);
  for (int64_t t = 0; t < count; t += step) {
    float sums[kSums];
    if constexpr (heads > step) {
      dot_products<step, heads>(rows + t * ld, ld, q, ld, depth, sums);
    } else {
      dot_products<heads, step>(q, ld, rows + t * ld, ld, depth, sums);
    }
    for (int i = 0; i < step; ++i) {
      for (int h = 0; h < heads; ++h) {
        scores[(t + i) * lanes + h] = sums[heads > step ? i * heads + h : h * step + i];
      }
    }
  }
}

// values[h][c] = decay[h] * values[h][c] + sum_t p[t][h] * rows[t][c] for `vecs` vectors of
// columns.
template <int heads, int vecs>
inline void add_rows(const float* p, int64_t lanes, const float* rows, int64_t ld, int64_t count,
                     const float* decay, float* values, int64_t width) {
  Vec acc[heads][vecs];
  for (int h = 0; h < heads; ++h) {
    const Vec factor = set1(decay[h]);
    for (int v = 0; v < vecs; ++v) acc[h][v] = mul(load(values + h * width + v * kLanes), factor);
  }
  for (int64_t t = 0; t < count; ++t) {
    if constexpr (heads < vecs) {
      Vec weight[heads];
      for (int h = 0; h < heads; ++h) weight[h] = set1(p[t * lanes + h]);
      for (int v = 0; v < vecs; ++v) {
        Vec x = load(rows + t * ld + v * kLanes);
        keep(x);
        for (int h = 0; h < heads; ++h) acc[h][v] = fma(weight[h], x, acc[h][v]);
      }
    } else {
      Vec x[vecs];
      for (int v = 0; v < vecs; ++v) {
        x[v] = load(rows + t * ld + v * kLanes);
        keep(x[v]);
      }
      for (int h = 0; h < heads; ++h) {
        const Vec weight = set1(p[t * lanes + h]);
        for (int v = 0; v < vecs; ++v) acc[h][v] = fma(weight, x[v], acc[h][v]);
      }
    }
  }
  for (int h = 0; h < heads; ++h) {
    for (int v = 0; v < vecs; ++v) store(values + h * width + v * kLanes, acc[h][v]);
  }
}
