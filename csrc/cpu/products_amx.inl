// Products of a GEMM in the tile registers of AMX.

// Up to kNarrowRows rows of A meet one group of columns at a time, more meet kTileGroups.
constexpr int64_t kBlockRows = 32, kUnitRows = 512, kPart = 512;
constexpr int64_t kFetchInOrder = INT64_MAX;  // bytes of a panel that are fetched as they lie

// Tiles 0 to 3 hold sums, 4 and 5 rows of A, 6 and 7 columns of B.
class Tiles {
 public:
  ~Tiles() {
    if (rows_ >= 0) tile_release();
  }

  // All rows times all groups of columns. Scaled sums are added after all segments: as often as
  // there are products, that would take as long as these.
  void multiply(const Bf16Tile& t, int64_t rows) {
    set(rows);
    for (int64_t s = 0; s < t.segments; ++s) {
      if (rows > 16) {
        square<true>(t, s);
      } else {
        square<false>(t, s);
      }
      each<4>([&](auto i) {
        if (i() < 2 || rows > 16) tile_store<i()>(sums_[s][i()], 64);
      });
    }
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t g = 0; g < kTileGroups; ++g) {
        ScaledSum sum(t, m, g);
        for (int64_t s = 0; s < t.segments; ++s) {
          sum.add(s, _mm512_load_ps(sums_[s][m / 16 * 2 + g][m % 16]));
        }
      }
    }
  }

  // Up to 16 rows times one group of columns: segments side by side, so that products do not wait
  // for one another. What is stored last is added with the next, or by finish().
  void multiply_narrow(const Bf16Tile& t, int64_t rows) {
    static_assert(kPart / kSegment == 4);
    set(rows);
    with_count<4>(t.segments, [&](auto segments) {
      column<segments()>(t);
      finish();
      each<segments()>([&](auto i) { tile_store<i()>(sums_[0][i()], 64); });
    });
    stored_ = t;
    stored_rows_ = rows;
  }

  // Adds what multiply_narrow() stored last: reads wait for products that are still under way, so
  // that they come after the next ones were issued.
  void finish() {
    for (int64_t m = 0; m < stored_rows_; ++m) {
      ScaledSum sum(stored_, m, 0);
      for (int64_t s = 0; s < stored_.segments; ++s) sum.add(s, _mm512_load_ps(sums_[0][s][m]));
    }
    stored_rows_ = 0;
  }

 private:
  void set(int64_t wanted) {
    if (wanted == rows_) return;
    rows_ = wanted;
    TileConfig config;
    const bool narrow = wanted <= 16;
    const auto upper = static_cast<uint8_t>(std::min<int64_t>(wanted, 16));
    const auto lower = narrow ? upper : static_cast<uint8_t>(wanted - 16);
    const uint8_t rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    std::copy(rows, rows + 8, config.rows);
    tile_load_config(&config);
  }

  template <bool both>
  static void square(const Bf16Tile& t, int64_t segment) {
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
  }

  template <int segments>
  static void column(const Bf16Tile& t) {
    each<segments>([](auto i) { tile_zero<i()>(); });
    for (int64_t k = 0; k < kSegment; k += 32) {
      each<segments>([&](auto i) {
        const int64_t at = i() * kSegment + k;
        tile_load<6 + i() % 2>(t.b + at / 2 * kPanelLanes, 64);
        tile_load<4 + i() % 2>(t.a + at, t.lda * 2);
        tile_product<i(), 4 + i() % 2, 6 + i() % 2>();
      });
    }
  }

  template <int count, typename F>
  static void each(const F& f) {
    if constexpr (count > 1) each<count - 1>(f);
    f(std::integral_constant<int, count - 1>());
  }

  alignas(64) float sums_[kPart / kSegment][4][16][16];
  Bf16Tile stored_{};
  int64_t stored_rows_ = 0, rows_ = -1;
};

template <typename Source>
constexpr int kNarrowGroups = 1;
template <typename Source>
constexpr int64_t kNarrowRows = 16;

// Codes of one group of columns times up to kNarrowRows rows.
template <DType type, typename Source>
inline void multiply_codes(const Bf16Tile& t, int64_t rows, const Source (&sources)[1],
                           int64_t count, uint32_t* panel, Tiles& tiles) {
  write_panel<type>(panel, sources[0], count, t.segments * kSegment);
  tiles.multiply_narrow(t, rows);
}
