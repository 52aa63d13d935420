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

  // Up to 16 rows times one segment of one group of columns. The panel of `next` is being written
  // while the products of the one before are under way, and reads of sums would wait for their
  // products: what a step starts, later ones end.
  void multiply_narrow(const Bf16Tile& next, int64_t rows) {
    set(rows);
    if (begun_ > multiplied_) run_oldest();
    steps_[begun_++ % kSteps] = next;
  }

  // Which segment of a panel the next step is to use: not the one that is still read, and no more
  // than two, which stay in the nearest cache.
  int64_t slot() const { return begun_ % 2; }

  // Ends all that multiply_narrow() has begun.
  void finish() {
    while (multiplied_ < begun_) run_oldest();
    while (stored_ < multiplied_) store_oldest();
    add_oldest();
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

  // Multiplies the oldest step that is not. Its tile has sums of the step four before it, which are
  // stored first; those that were stored before are added.
  void run_oldest() {
    if (multiplied_ >= kTiles + stored_) store_oldest();
    const Bf16Tile& t = steps_[multiplied_ % kSteps];
    with_tile(multiplied_, [&](auto i) {
      tile_zero<i()>();
      for (int64_t k = 0; k < kSegment; k += 64) {
        tile_load<6>(t.b + k / 2 * kPanelLanes, 64);
        tile_load<4>(t.a + k, t.lda * 2);
        tile_product<i(), 4, 6>();
        tile_load<7>(t.b + (k + 32) / 2 * kPanelLanes, 64);
        tile_load<5>(t.a + k + 32, t.lda * 2);
        tile_product<i(), 5, 7>();
      }
    });
    ++multiplied_;
  }

  void store_oldest() {
    add_oldest();
    with_tile(stored_, [&](auto i) { tile_store<i()>(sums_[0][i()], 64); });
    ++stored_;
  }

  void add_oldest() {
    if (added_ == stored_) return;
    const Bf16Tile& t = steps_[added_ % kSteps];
    for (int64_t m = 0; m < rows_; ++m) {
      ScaledSum(t, m, 0).add(0, _mm512_load_ps(sums_[0][added_ % kTiles][m]));
    }
    ++added_;
  }

  template <typename F>
  static void with_tile(int64_t step, const F& f) {
    switch (step % kTiles) {
      case 0:
        return f(std::integral_constant<int, 0>());
      case 1:
        return f(std::integral_constant<int, 1>());
      case 2:
        return f(std::integral_constant<int, 2>());
      default:
        f(std::integral_constant<int, 3>());
    }
  }

  template <int count, typename F>
  static void each(const F& f) {
    if constexpr (count > 1) each<count - 1>(f);
    f(std::integral_constant<int, count - 1>());
  }

  static constexpr int64_t kTiles = 4, kSteps = 8;
  alignas(64) float sums_[kPart / kSegment][kTiles][16][16];
  Bf16Tile steps_[kSteps];
  int64_t begun_ = 0, multiplied_ = 0, stored_ = 0, added_ = 0;  // steps so far
  int64_t rows_ = -1;
};

template <typename Source>
constexpr int kNarrowGroups = 1;
template <typename Source>
constexpr int64_t kNarrowRows = 16;

// Codes of one group of columns times up to kNarrowRows rows.
template <DType type, typename Source>
inline void multiply_codes(const Bf16Tile& t, int64_t rows, const Source (&sources)[1],
                           int64_t count, uint32_t* panel, Tiles& tiles) {
  for (int64_t s = 0; s < t.segments; ++s) {
    const int64_t k = s * kSegment;
    Source left = sources[0];
    left.skip(k);
    uint32_t* to = panel + tiles.slot() * kSegment / 2 * kPanelLanes;
    write_panel<type>(to, left, std::min(kSegment, count - k), kSegment);
    Bf16Tile step = t.from_segment(s);
    step.b = to;
    tiles.multiply_narrow(step, rows);
  }
}
