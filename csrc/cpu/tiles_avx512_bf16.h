// Tiles of BF16 products in vector registers, for AVX-512 BF16. Included inside the namespace of
// the instruction set.

// See load_lines.
constexpr bool kInsertsFromMemory = false;

// What a thread holds while it multiplies tiles.
struct TileSession {};

// Two neighbouring elements, for every lane.
inline __m512bh pair_at(const uint16_t* a) {
  int32_t pair;
  std::memcpy(&pair, a, sizeof(pair));
  return (__m512bh)_mm512_set1_epi32(pair);
}

// Rows of a tile beside `vecs` vectors of columns.
template <int vecs>
constexpr int kTileRows = kRegisters / 4 * 3 / vecs;

// Calls use(t, sums) for each of `rows` rows t: sums over k of a[t][k] * b[k][n], for vecs * kLanes
// columns n. Rows of a are lda elements apart; b is [vecs][k / 2][kLanes] pairs, its vectors of
// columns b_stride pairs apart.
template <int rows, int vecs, typename Use>
inline void pair_tile(const uint16_t* a, int64_t lda, const uint32_t* b, int64_t b_stride,
                      int64_t depth, const Use& use) {
  Vec acc[rows][vecs];
  clear(acc);
  for (int64_t k = 0; k < depth; k += 2, b += kLanes) {
    Vec y[vecs];
    for (int v = 0; v < vecs; ++v) {
      Vec x = _mm512_load_ps(b + v * b_stride);
      keep(x);
      y[v] = x;
    }
    for (int t = 0; t < rows; ++t) {
      const __m512bh x = pair_at(a + t * lda + k);
      for (int v = 0; v < vecs; ++v) acc[t][v] = _mm512_dpbf16_ps(acc[t][v], x, (__m512bh)y[v]);
    }
  }
  for (int t = 0; t < rows; ++t) use(t, acc[t]);
}

// The same for a tile of kTileRows rows and b as [vecs][k / 2][kLanes][2].
template <int vecs, typename Use>
inline void bf16_tile(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t depth,
                      const Use& use) {
  pair_tile<kTileRows<vecs>, vecs>(a, lda, reinterpret_cast<const uint32_t*>(b), depth / 2 * kLanes,
                                   depth, use);
}
