// Grouped products out[r, n] = sum_k A[r, k] B[n, k]. Rows of A are decoded to float32 with every
// scale folded in (those of A, and those of the columns of B at hand), so the inner loops pay
// nothing per element for scales. B is decoded in registers for up to kStreamRows rows of A, and
// once into L1 for more.

constexpr int64_t kDepth = 512;  // k range kept in cache at a time, a multiple of 128
// Apart in memory, so that rows fall into different cache sets.
constexpr int64_t kLd = kDepth + 16;
// Decoded columns of B that stay in L1 beside a tile of rows of A.
constexpr int64_t kPanelCols = 2 * kCols;
constexpr int64_t kBRows = 3 * kBand;

// Half of what tiny codes lack, see decode_step.
constexpr float kTinyHalf = 0x1p60f;

// One unit of work: its operands, its buffers and the steps.
struct GemmUnit {
  const GroupedGemm& p;
  const Unit& u;
  const Group& g;
  float *a, *b, *c;   // [rows, kLd or k], [kBRows, kLd], [rows, kLdc]
  const char* after;  // see packed_start: of what is read next, or null
  bool tiny = false;  // how B is decoded

  // Floats of scratch beside c.
  int64_t floats() const { return a_floats() + kBRows * kLd; }
  int64_t a_floats() const { return u.rows * (streams_b() ? padded(g.k) : kLd); }

  // Scales of B by column cannot be folded into A: they go into B, or to the end where they do
  // not depend on k.
  bool scales_at_end() const { return scales_by_column(p) && p.b_scale.k_stride == 0; }
  bool scales_in_b() const { return scales_by_column(p) && !scales_at_end(); }

  bool decodes_in_registers() const { return p.b.k_stride == 1 && !scales_in_b(); }
  bool streams_b() const {
    if (p.b.packed) return u.rows <= kPackedStreamRows;
    return u.rows <= kStreamRows && decodes_in_registers();
  }

  int64_t row(int64_t i) const { return row_of(g, u.row_first + i); }

  // Rows of A for k in [k, k + count) at dst, lda apart.
  void pack_a(float* dst, int64_t lda, int64_t k, int64_t count) const {
    // What tiny codes lack is divided between A and the sums, where neither side leaves its range.
    float factor = decode_factor(p.a.type) * (tiny ? kTinyHalf : decode_factor(p.b.type));
    auto fold = [&](int64_t k_block) {
      return scales_by_column(p) ? factor
                                 : factor * scale_at(p.b_scale, g.weight, u.col_first, k_block);
    };
    if (g.rows == nullptr) {
      pack_rows(dst, lda, p.a, p.a_scale, g, g.a_group, row(0), u.rows, k, count, fold);
      return;
    }
    for (int64_t m = 0; m < u.rows; ++m) {
      pack_row(dst + m * lda, p.a, p.a_scale, g, g.a_group, row(m), k, count, fold);
    }
  }

  // Packs `cols` columns of B and fills up to whole tiles with zeros.
  void pack_b(int64_t col, int64_t cols, int64_t k, int64_t count) const {
    static constexpr Scales kNone{nullptr, 0, 0, 0, 1, INT64_MAX};
    pack_rows(b, kLd, p.b, scales_in_b() ? p.b_scale : kNone, g, g.weight, col, cols, k, count,
              [](int64_t) { return 1.0f; });
    for (int64_t n = cols; n % kCols != 0; ++n) {
      for (int64_t i = 0; i < padded(count); i += kLanes) store(b + n * kLd + i, zero());
    }
  }

  // Calls f with the type of B and how it is decoded, as constants.
  template <typename F>
  void with_codes(const F& f) const {
    with_type(p.b.type, [&](auto type) {
      if constexpr (type() == DType::kE4M3) {
        if (tiny) return f(type, std::true_type());
      }
      f(type, std::false_type());
    });
  }

  template <DType type, bool is_tiny>
  void decode_b(int64_t col, int64_t cols, int64_t k, int64_t count) const {
    const int64_t ahead = panel() * p.b.row_stride * size_of(type);
    for (int64_t n = 0; n < ceil_div(cols, kCols) * kCols; n += kCols) {
      const char* codes[kCols];
      codes_at(col + n, k, count, codes);
      for (int j = 0; j < kCols; ++j) {
        decode_row<type, is_tiny>(b + (n + j) * kLd, codes[j], padded(count), ahead);
      }
    }
  }

  // Columns of B that are decoded at a time.
  int64_t panel() const { return stored_by_column(p.b) ? kBRows : kPanelCols; }

  void decode_once() const {
    for (int64_t k = 0; k < g.k; k += kDepth) {
      const int64_t count = std::min(kDepth, g.k - k);
      pack_a(a, kLd, k, count);
      for (int64_t first = 0; first < u.cols; first += panel()) {
        const int64_t cols = std::min(panel(), u.cols - first);
        if (decodes_in_registers()) {
          with_codes(
              [&](auto type, auto tiny) { decode_b<type(), tiny()>(first, cols, k, count); });
        } else {
          pack_b(u.col_first + first, cols, k, count);
        }
        multiply(first, cols, padded(count));
      }
    }
  }

  // Adds all packed rows of A times `cols` decoded columns of B.
  void multiply(int64_t first, int64_t cols, int64_t depth) const {
    for (int64_t m = 0; m < u.rows; m += kRows) {
      for (int64_t n = 0; n < cols; n += kCols) {
        with_count<kRows>(u.rows - m, [&](auto rows) {
          dot_tile<rows(), kCols>(a + m * kLd, kLd, b + n * kLd, kLd, depth,
                                  c + m * kLdc + first + n, kLdc);
        });
      }
    }
  }

  // Codes of rows of B from k on, padded with zeros where k + count ends inside a step.
  template <int cols>
  void codes_at(int64_t n, int64_t k, int64_t count, const char* (&codes)[cols]) const {
    const int64_t size = size_of(p.b.type), whole = padded(count);
    for (int64_t j = 0; j < cols; ++j) {
      // Columns past the end repeat the last one; their sums are not stored.
      int64_t col = u.col_first + std::min(n + j, u.cols - 1);
      codes[j] = element(p.b, g.weight, col, g.k_first + k);
      if (whole == count) continue;
      char* copy = reinterpret_cast<char*>(b + (kBRows - cols + j) * kLd);
      std::memcpy(copy, codes[j], count * size);
      std::memset(copy + count * size, 0, (whole - count) * size);
      codes[j] = copy;
    }
  }

  // Reads whole rows of B one after the other, which is what the memory does best.
  template <DType type, bool is_tiny>
  void stream() const {
    const int64_t lda = padded(g.k), ahead = kStreams * p.b.row_stride * size_of(type);
    pack_a(a, lda, 0, g.k);
    for (int64_t n = 0; n < u.cols; n += kStreams) {
      for (int64_t k = 0; k < g.k; k += kDepth) {
        const int64_t count = std::min(kDepth, g.k - k);
        const char* codes[kStreams];
        codes_at(n, k, count, codes);
        with_count<kStreamRows>(u.rows, [&](auto rows) {
          stream_tile<type, is_tiny, rows(), kStreams>(a + k, lda, codes, padded(count), ahead,
                                                       c + n, kLdc);
        });
      }
    }
  }

  // Calls f(first row, rows) for `blocks` blocks of up to `most` rows, as even as they come.
  template <int most, typename F>
  void row_blocks(int64_t blocks, const F& f) const {
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t m = i * u.rows / blocks;
      with_count<most>((i + 1) * u.rows / blocks - m, [&](auto rows) { f(m, rows); });
    }
  }

  const char* codes(int64_t n, int64_t k) const { return packed_panel(p, u, n) + k * kPackedRows; }

  int64_t far(int64_t n, int64_t k, int64_t groups) const {
    return packed_far(p, u, n, k, kPackedDepth, groups, after);
  }

  // The tallest tiles are best while all rows of A stay in the nearest cache.
  int64_t packed_blocks() const { return ceil_div(u.rows, u.rows <= 10 ? kPackedTileRows : 4); }

  template <bool is_tiny, int groups>
  void stream_packed(int64_t n, int64_t lda) const {
    for (int64_t k = 0; k < g.k; k += kPackedDepth) {
      const int64_t count = std::min(kPackedDepth, g.k - k), ahead = far(n, k, groups);
      const char* panels[groups];
      for (int i = 0; i < groups; ++i) panels[i] = codes(n + i * kPackedRows, k);
      row_blocks<kPackedTileRows>(packed_blocks(), [&](int64_t m, auto rows) {
        packed_tile<is_tiny, rows()>(a + m * lda + k, lda, panels, count, ahead, c + m * kLdc + n,
                                     kLdc);
      });
    }
  }

  // Products of one sum wait for each other: few rows meet several panels side by side.
  template <bool is_tiny>
  void stream_packed() const {
    const int64_t lda = padded(g.k);
    pack_a(a, lda, 0, g.k);
    for (int64_t n = 0; n < u.cols;) {
      const int64_t left = (u.cols - n) / kPackedRows;
      if (u.rows == 1 && left >= 4) {
        stream_packed<is_tiny, 4>(n, lda);
        n += 4 * kPackedRows;
      } else if (u.rows <= 2 && left >= 2) {
        stream_packed<is_tiny, 2>(n, lda);
        n += 2 * kPackedRows;
      } else {
        stream_packed<is_tiny, 1>(n, lda);
        n += kPackedRows;
      }
    }
  }

  template <bool is_tiny>
  void decode_packed_once() const {
    for (int64_t k = 0; k < g.k; k += kPackedDepth) {
      const int64_t count = std::min(kPackedDepth, g.k - k);
      pack_a(a, kLd, k, count);
      for (int64_t n = 0; n < u.cols; n += kPackedRows) {
        decode_panel<is_tiny>(b, codes(n, k), count, far(n, k, 1));
        row_blocks<kPackedTileRows>(ceil_div(u.rows, kPackedTileRows), [&](int64_t m, auto rows) {
          panel_tile<rows()>(a + m * kLd, kLd, b, count, c + m * kLdc + n, kLdc);
        });
      }
    }
  }

  template <bool is_tiny>
  void add_packed() const {
    if (streams_b()) return stream_packed<is_tiny>();
    decode_packed_once<is_tiny>();
  }

  void add_products() const {
    std::memset(c, 0, u.rows * kLdc * sizeof(float));
    if (p.b.packed) {
      [[maybe_unused]] const WithSubnormals with_subnormals;
      return tiny ? add_packed<true>() : add_packed<false>();
    }
    if (streams_b()) {
      with_codes([&](auto type, auto tiny) { stream<type(), tiny()>(); });
    } else {
      decode_once();
    }
  }

  // Multiplies the sums with what tiny codes still lack. False where one is not finite.
  bool complete_tiny() const {
    bool finite = true;
    for (int64_t m = 0; m < u.rows; ++m) {
      for (int64_t n = 0; n < u.cols; ++n) {
        float& sum = c[m * kLdc + n];
        sum *= kTinyHalf;
        finite &= std::fabs(sum) < INFINITY;
      }
    }
    return finite;
  }

  void run() {
    tiny = p.b.type == DType::kE4M3 && decodes_in_registers() && subnormals_are_fast();
    add_products();
    if (tiny && !complete_tiny()) {
      // An operand that is not finite, or beyond what this way has room for.
      tiny = false;
      add_products();
    }
    for (int64_t m = 0; m < u.rows && scales_at_end(); ++m) {
      for (int64_t n = 0; n < u.cols; ++n) {
        c[m * kLdc + n] *= scale_at(p.b_scale, g.weight, u.col_first + n, 0);
      }
    }
  }
};

// What units share: nothing, each packs its own rows of A.
struct PackedRows {
  explicit PackedRows(const GroupedGemm&) {}
  int64_t bytes() const { return 0; }
  int64_t count() const { return 0; }
  int64_t bytes_per_row() const { return 0; }
  void place(void*) {}
  void adopt(const uint16_t*, int64_t) {}
  void write(int64_t, int64_t) const {}
};

constexpr int64_t kUnitRows = kBlockM;

inline int64_t unit_floats(const GroupedGemm& p, const Unit& u) {
  return GemmUnit{p, u, *u.group, nullptr, nullptr, nullptr, nullptr}.floats();
}

// c[rows, kLdc] = the sums of a unit; `after` is the packed_start of what is read next, or null.
inline void unit_sums(const GroupedGemm& p, const PackedRows&, const Unit& u, float* buffer,
                      float* c, const char* after) {
  GemmUnit work{p, u, *u.group, buffer, nullptr, c, after};
  work.b = buffer + work.a_floats();
  work.run();
}
