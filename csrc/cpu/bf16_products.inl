// Sums of products of BF16 pairs. Scales come in after every kSegment of k: c += s * (a . b), in
// float32, in the same order for one result whatever else is computed beside it.

// What a tile multiplies: rows of A (BF16, lda apart), a panel of B for `lanes` groups of columns
// (group_stride dwords apart), and their scales.
struct Bf16Tile {
  const uint16_t* a;
  int64_t lda;
  const uint32_t* b;
  int64_t group_stride;
  int64_t segments;
  const float* a_scale;  // [rows, a_scale_stride] one for each segment
  int64_t a_scale_stride;
  const float* b_scale;  // [segments, b_scale_stride] one for each column
  int64_t b_scale_stride;
  float* c;  // [rows, ldc]
  int64_t ldc;
};

// c += s * acc, for one row and one group of columns.
inline void add_scaled(const Bf16Tile& t, int64_t m, int64_t group, int64_t segment, __m512 acc) {
  const __m512 a_scale = _mm512_set1_ps(t.a_scale[m * t.a_scale_stride + segment]);
  const float* b_scale = t.b_scale + segment * t.b_scale_stride + group * kPanelLanes;
  float* c = t.c + m * t.ldc + group * kPanelLanes;
  const __m512 scale = _mm512_mul_ps(a_scale, _mm512_loadu_ps(b_scale));
  _mm512_storeu_ps(c, _mm512_fmadd_ps(acc, scale, _mm512_loadu_ps(c)));
}

#ifdef __AMX_BF16__

constexpr int64_t kTileRows = 32, kUnitRows = 512, kStreamRows = 0;
constexpr int kTileGroups = 2;

// Tiles 0 to 3 hold sums, 4 and 5 rows of A, 6 and 7 columns of B.
struct TileShape {
  int64_t rows = -1;

  ~TileShape() {
    if (rows >= 0) tile_release();
  }

  // Sets the tiles up for up to kTileRows rows of A.
  void set(int64_t wanted) {
    if (wanted == rows) return;
    rows = wanted;
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    const auto upper = static_cast<uint8_t>(std::min<int64_t>(rows, 16));
    const auto lower = static_cast<uint8_t>(std::max<int64_t>(rows - 16, 1));
    const uint8_t by_tile[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int i = 0; i < 8; ++i) {
      config.rows[i] = by_tile[i];
      config.bytes[i] = 64;
    }
    tile_load_config(&config);
  }
};

template <bool both>
inline void tile_segment(const Bf16Tile& t, int64_t segment, float (&sums)[4][16][16]) {
  const uint16_t* a = t.a + segment * kSegment;
  const uint32_t* b = t.b + segment * kSegment / 2 * kPanelLanes;
  tile_zero<0>();
  tile_zero<1>();
  if constexpr (both) {
    tile_zero<2>();
    tile_zero<3>();
  }
  for (int64_t k = 0; k < kSegment; k += 32) {
    tile_load<6>(b + k / 2 * kPanelLanes, 64);
    tile_load<4>(a + k, t.lda * 2);
    tile_product<0, 4, 6>();
    tile_load<7>(b + t.group_stride + k / 2 * kPanelLanes, 64);
    tile_product<1, 4, 7>();
    if constexpr (both) {
      tile_load<5>(a + 16 * t.lda + k, t.lda * 2);
      tile_product<2, 5, 6>();
      tile_product<3, 5, 7>();
    }
  }
  tile_store<0>(sums[0], 64);
  tile_store<1>(sums[1], 64);
  if constexpr (both) {
    tile_store<2>(sums[2], 64);
    tile_store<3>(sums[3], 64);
  }
}

// Rows up to kTileRows times kTileGroups groups of columns.
inline void multiply_tile(const Bf16Tile& t, int64_t rows, TileShape& shape) {
  shape.set(rows);
  alignas(64) float sums[4][16][16];
  for (int64_t s = 0; s < t.segments; ++s) {
    if (rows > 16) {
      tile_segment<true>(t, s, sums);
    } else {
      tile_segment<false>(t, s, sums);
    }
    for (int64_t m = 0; m < rows; ++m) {
      for (int g = 0; g < kTileGroups; ++g) {
        add_scaled(t, m, g, s, _mm512_load_ps(sums[m / 16 * 2 + g][m % 16]));
      }
    }
  }
}

#else

constexpr int64_t kTileRows = 12, kUnitRows = 256, kStreamRows = 3;
constexpr int kTileGroups = 2;  // 24 accumulators, of 32 vector registers

struct TileShape {};

template <int rows, int groups>
inline void dot_pairs(const Bf16Tile& t, int first_group) {
  const uint32_t* panel = t.b + first_group * t.group_stride;
  for (int64_t s = 0; s < t.segments; ++s) {
    __m512 acc[rows][groups];
    for (auto& row : acc) {
      for (__m512& v : row) v = _mm512_setzero_ps();
    }
    const uint16_t* a = t.a + s * kSegment;
    const uint32_t* b = panel + s * kSegment / 2 * kPanelLanes;
    for (int64_t k = 0; k < kSegment; k += 2, b += kPanelLanes) {
      __m512bh vb[groups];
      for (int g = 0; g < groups; ++g) {
        vb[g] = reinterpret_cast<__m512bh>(_mm512_load_si512(b + g * t.group_stride));
      }
      for (int m = 0; m < rows; ++m) {
        int32_t pair;
        std::memcpy(&pair, a + m * t.lda + k, sizeof(pair));
        const auto va = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
        for (int g = 0; g < groups; ++g) acc[m][g] = _mm512_dpbf16_ps(acc[m][g], va, vb[g]);
      }
    }
    for (int m = 0; m < rows; ++m) {
      for (int g = 0; g < groups; ++g) add_scaled(t, m, first_group + g, s, acc[m][g]);
    }
  }
}

// The same for few rows of A and two segments of one group of columns, straight from the codes of
// B. Two segments side by side keep the multipliers busy, where one would wait for its own sums;
// more rows of B at once would push each other out of the cache where they lie a power of two
// apart.
template <DType type, int rows>
inline void stream_pairs(const Bf16Tile& t, int group, const char* const* codes, int64_t segment) {
  constexpr int kSegments = 2;
  constexpr int64_t kCodes = PanelWriter<type>::kCodes, kSize = 16 / kCodes;
  const PanelWriter<type> writer;
  __m512 acc[kSegments][rows];
  for (auto& segment : acc) {
    for (__m512& v : segment) v = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < kSegment; k += kCodes) {
    for (int s = 0; s < kSegments; ++s) {
      const int64_t at = (segment + s) * kSegment + k;
      if (at * kSize % 64 == 0) fetch_lines(codes, kPanelLanes, (at + 2 * kSegment) * kSize);
      writer.pairs(codes, at * kSize, [&](int pair, __m512i dwords) {
        for (int m = 0; m < rows; ++m) {
          int32_t two;
          std::memcpy(&two, t.a + m * t.lda + at + 2 * pair, sizeof(two));
          acc[s][m] =
              _mm512_dpbf16_ps(acc[s][m], reinterpret_cast<__m512bh>(_mm512_set1_epi32(two)),
                               reinterpret_cast<__m512bh>(dwords));
        }
      });
    }
  }
  for (int s = 0; s < kSegments; ++s) {
    for (int m = 0; m < rows; ++m) add_scaled(t, m, group, segment + s, acc[s][m]);
  }
}

inline void multiply_tile(const Bf16Tile& t, int64_t rows, TileShape&) {
  with_rows<kTileRows>(rows, [&](auto count) { dot_pairs<count(), kTileGroups>(t, 0); });
}

#endif
