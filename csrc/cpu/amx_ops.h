// Operations on the tile registers of AMX. Included inside the namespace of the instruction set.
// Written out because g++'s macros take no template arguments and do not say that they touch
// memory.

// Eight tiles of 16 rows of 64 bytes, unless told otherwise.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

inline void tile_load_config(const void* config) {
  asm volatile("ldtilecfg %0" : : "m"(*static_cast<const char (*)[64]>(config)));
}
inline void tile_release() { asm volatile("tilerelease"); }

template <int tile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}

template <int tile>
inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
}

template <int tile>
inline void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
}

// Tile c += tile a (rows of BF16 pairs) times tile b (pairs by column).
template <int c, int a, int b>
inline void tile_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}
