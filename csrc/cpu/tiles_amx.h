// Tiles of BF16 products in AMX registers. Included inside the namespace of the instruction set.

#include "cpu/amx_ops.h"

// Intel has one port for shuffles; lanes from memory need none.
constexpr bool kInsertsFromMemory = true;

// What a thread holds while it multiplies tiles.
class TileSession {
 public:
  TileSession() {
    static constexpr TileConfig kConfig;
    tile_load_config(&kConfig);
  }
  ~TileSession() { tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

// Rows of a tile beside `vecs` vectors of columns.
template <int vecs>
constexpr int kTileRows = 16;

// Calls use(t, sums) for each row t of a tile: sums over k of a[t][k] * b[k][n], for vecs * kLanes
// columns n. Rows of a are lda elements apart; b is [vecs][k / 2][kLanes][2].
template <int vecs, typename Use>
inline void bf16_tile(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t depth,
                      const Use& use) {
  static_assert(vecs >= 1 && vecs <= 4);
  constexpr int64_t kStep = 32, kRowBytes = 64;
  alignas(64) float sums[vecs][16][kLanes];
  const int64_t a_bytes = lda * static_cast<int64_t>(sizeof(uint16_t));
  tile_zero<0>();
  if constexpr (vecs > 1) tile_zero<1>();
  if constexpr (vecs > 2) tile_zero<2>();
  if constexpr (vecs > 3) tile_zero<3>();
  for (int64_t k = 0; k < depth; k += kStep) {
    const uint16_t* y = b + k * kLanes;
    tile_load<4>(a + k, a_bytes);
    tile_load<5>(y, kRowBytes);
    tile_product<0, 4, 5>();
    if constexpr (vecs > 1) {
      tile_load<6>(y + depth * kLanes, kRowBytes);
      tile_product<1, 4, 6>();
    }
    if constexpr (vecs > 2) {
      tile_load<7>(y + 2 * depth * kLanes, kRowBytes);
      tile_product<2, 4, 7>();
    }
    if constexpr (vecs > 3) {
      tile_load<5>(y + 3 * depth * kLanes, kRowBytes);
      tile_product<3, 4, 5>();
    }
  }
  tile_store<0>(sums[0], kRowBytes);
  if constexpr (vecs > 1) tile_store<1>(sums[1], kRowBytes);
  if constexpr (vecs > 2) tile_store<2>(sums[2], kRowBytes);
  if constexpr (vecs > 3) tile_store<3>(sums[3], kRowBytes);
  for (int t = 0; t < 16; ++t) {
    Vec row[vecs];
    for (int v = 0; v < vecs; ++v) row[v] = load(sums[v][t]);
    use(t, row);
  }
}
