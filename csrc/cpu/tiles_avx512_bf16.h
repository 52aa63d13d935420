// Tiles of BF16 products in vector registers, for AVX-512 BF16. Included inside the namespace of
// the instruction set.

// See load_lines.
constexpr bool kInsertsFromMemory = false;

// What a thread holds while it multiplies tiles.
struct TileSession {};

// Rows of a tile beside `vecs` vectors of columns.
template <int vecs>
constexpr int kTileRows = kRegisters / 4 * 3 / vecs;

// Calls use(t, sums) for each row t of a tile: sums over k of a[t][k] * b[k][n], for vecs * kLanes
// columns n. Rows of a are lda elements apart; b is [vecs][k / 2][kLanes][2].
template <int vecs, typename Use>
inline void bf16_tile(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t depth,
                      const Use& use) {
  constexpr int rows = kTileRows<vecs>;
  Vec acc[rows][vecs];
  for (auto& row : acc) {
    for (Vec& v : row) v = zero();
  }
  for (int64_t k = 0; k < depth; k += 2) {
    Vec y[vecs];
    for (int v = 0; v < vecs; ++v) {
      Vec x = _mm512_load_ps(b + (v * depth + k) * kLanes);
      keep(x);
      y[v] = x;
    }
    for (int t = 0; t < rows; ++t) {
      int32_t pair;
      std::memcpy(&pair, a + t * lda + k, sizeof(pair));
      const __m512i x = _mm512_set1_epi32(pair);
      for (int v = 0; v < vecs; ++v) {
        acc[t][v] = _mm512_dpbf16_ps(acc[t][v], (__m512bh)x, (__m512bh)y[v]);
      }
    }
  }
  for (int t = 0; t < rows; ++t) use(t, acc[t]);
}
