// Grouped products of operands that BF16 holds exactly. Rows of A are laid out once for all units;
// a unit turns its rows of B into panels, a part of k at a time, and multiplies all its rows of A
// with each.

inline int64_t whole_segments(int64_t k) { return ceil_div(k, kSegment) * kSegment; }

inline bool fits_bf16(DType type) { return type <= DType::kBF16; }

// Whether the scales of an operand stay the same over each segment of k.
inline bool in_segments(const Scales& s, int64_t k) {
  return s.data == nullptr || s.k_stride == 0 || s.k_block >= k || s.k_block % kSegment == 0;
}

inline bool takes_bf16(const GroupedGemm& p) {
  if (!fits_bf16(p.a.type) || !fits_bf16(p.b.type) || p.b.k_stride != 1) return false;
  for (int64_t g = 0; g < p.num_groups; ++g) {
    const Group& group = p.groups[g];
    if (group.k_first != 0 || group.k_block_first != 0) return false;
    if (!in_segments(p.a_scale, group.k) || !in_segments(p.b_scale, group.k)) return false;
  }
  return true;
}

// Rows of A in BF16, padded with zeros to whole segments, one after the other for all units.
class PackedRows {
 public:
  explicit PackedRows(const GroupedGemm& p) : p_(p) {
    first_.reserve(p.num_groups + 1);
    first_.push_back(0);
    for (int64_t g = 0; g < p.num_groups; ++g) {
      first_.push_back(first_.back() + p.groups[g].count);
      ld_ = std::max(ld_, packed_ld(p.groups[g].k));
    }
  }

  int64_t bytes() const { return count() * bytes_per_row(); }
  int64_t count() const { return adopted_ ? 0 : first_.back(); }
  int64_t bytes_per_row() const { return ld_ * static_cast<int64_t>(sizeof(uint16_t)); }
  // Where write() puts them.
  void place(void* memory) { rows_ = static_cast<uint16_t*>(memory); }
  // Takes rows that are in this form already.
  void adopt(const uint16_t* rows, int64_t ld) {
    rows_ = const_cast<uint16_t*>(rows);
    ld_ = ld;
    adopted_ = true;
  }

  void write(int64_t first, int64_t last) const {
    int64_t g = std::upper_bound(first_.begin(), first_.end(), first) - first_.begin() - 1;
    for (int64_t i = first; i < last; ++i) {
      while (i >= first_[g + 1]) ++g;
      const Group& group = p_.groups[g];
      write(rows_ + i * ld_, group, row_of(group, i - first_[g]));
    }
  }

  const uint16_t* row(const Group* g, int64_t i) const {
    return rows_ + (first_[g - p_.groups] + i) * ld_;
  }
  int64_t ld() const { return ld_; }

 private:
  void write(uint16_t* dst, const Group& g, int64_t row) const {
    if (g.k == 0) return;  // A has no memory
    const char* src = element(p_.a, g.a_group, row, 0);
    if (p_.a.type == DType::kBF16 && p_.a.k_stride == 1) {
      std::memcpy(dst, src, g.k * sizeof(uint16_t));
    } else {
      alignas(64) float part[kSegment];
      for (int64_t k = 0; k < g.k; k += kSegment) {
        const int64_t count = std::min(kSegment, g.k - k);
        with_type(p_.a.type, [&](auto type) {
          put_row<type()>(part, p_.a, element(p_.a, g.a_group, row, k), count,
                          decode_factor(type()));
        });
        for (int64_t i = 0; i < count; i += kLanes) store_bf16(dst + k + i, load(part + i));
      }
    }
    std::memset(dst + g.k, 0, (whole_segments(g.k) - g.k) * sizeof(uint16_t));
  }

  const GroupedGemm& p_;
  std::vector<int64_t> first_;  // [num_groups + 1] first row of each group
  int64_t ld_ = 0;
  uint16_t* rows_ = nullptr;
  bool adopted_ = false;
};

// One unit of work: its operands, its buffers and the steps.
struct Bf16Unit {
  const GroupedGemm& p;
  const PackedRows& rows;
  const Unit& u;
  const Group& g;
  uint32_t* panel;               // [kTileGroups, kPart / 2, kPanelLanes]
  float *scale, *col_scale, *c;  // [rows, segments], [segments, kPanelCols], [rows, kLdc]
  const char* after;             // see packed_start: of what is read next, or null
  Tiles tiles;

  static constexpr int64_t kPanelFloats = kPart * kPanelCols / 2;
  static constexpr int64_t kFarInRow = 256;

  int64_t segments() const { return ceil_div(g.k, kSegment); }

  static int64_t floats(const Unit& u) {
    return kPanelFloats + ceil_div(u.group->k, kSegment) * (u.rows + kPanelCols);
  }

  Bf16Unit(const GroupedGemm& p, const PackedRows& rows, const Unit& u, float* buffer, float* c,
           const char* after)
      : p(p),
        rows(rows),
        u(u),
        g(*u.group),
        panel(reinterpret_cast<uint32_t*>(buffer)),
        c(c),
        after(after) {
    scale = buffer + kPanelFloats;
    col_scale = scale + segments() * u.rows;
  }

  int64_t row(int64_t i) const { return row_of(g, u.row_first + i); }

  // to[i * step] = the scale of segment i for one row of an operand.
  void put_scales(float* to, int64_t step, const Scales& s, int64_t group, int64_t row) const {
    const float* from = s.data;
    if (from != nullptr) from += group * s.group_stride + row / s.row_block * s.row_stride;
    int64_t block_end = s.k_block;
    for (int64_t i = 0; i < segments(); ++i) {
      if (i * kSegment == block_end) {
        block_end += s.k_block;
        if (from != nullptr) from += s.k_stride;
      }
      to[i * step] = from == nullptr ? 1.0f : *from;
    }
  }

  // Rows without scales of their own share those of the columns.
  bool rows_share_scales() const { return p.a_scale.data == nullptr && !scales_by_column(p); }

  // One for each row and segment. No unit reaches across blocks of columns: their scale comes in
  // here unless each column has its own.
  void put_row_scales() const {
    float* common = rows_share_scales() ? scale : col_scale;
    if (!scales_by_column(p)) put_scales(common, 1, p.b_scale, g.weight, u.col_first);
    for (int64_t m = 0; m < u.rows && !rows_share_scales(); ++m) {
      float* to = scale + m * segments();
      put_scales(to, 1, p.a_scale, g.a_group, row(m));
      for (int64_t s = 0; s < segments() && !scales_by_column(p); ++s) to[s] *= common[s];
    }
  }

  int64_t last_col(int64_t n) const { return u.col_first + std::min(n, u.cols - 1); }

  void put_col_scales(int64_t n, int64_t cols) const {
    for (int64_t j = 0; j < cols && scales_by_column(p); ++j) {
      put_scales(col_scale + j, kPanelCols, p.b_scale, g.weight, last_col(n + j));
    }
  }

  // Where columns from n on are found, of which `groups` groups are read part by part in turn.
  template <DType type>
  void find(PackedSource<type>& source, int64_t n, int64_t k, int64_t groups) const {
    constexpr int64_t kNear = 2048;
    source.panel = packed_panel(p, u, n);
    // One group after the other is one stream.
    source.far = groups == 1 ? kNear : packed_far(p, u, n, k, kPart, groups, after);
    source.skip(k);
  }

  // Row by row. Each is followed, unless they lie in order and are read one group after the other.
  template <DType type>
  void find(RowSource<type>& source, int64_t n, int64_t k, int64_t groups) const {
    for (int64_t j = 0; j < kPanelLanes; ++j) {
      source.rows[j] = element(p.b, g.weight, last_col(n + j), k);
    }
    const int64_t size = size_of(type), next = g.k * kPanelLanes * size;
    if (groups > 1 || next > kFetchInOrder || p.b.row_stride != g.k ||
        n + 2 * kPanelLanes > u.cols) {
      source.next = nullptr;
      source.far = (groups > 1 ? kPart : kFarInRow) * size;
    } else {
      source.next = source.rows[0] + next + k * (kPanelLanes - 1) * size;
    }
  }

  // Calls f with the type of B and a null pointer to what reads it.
  template <typename F>
  void with_source(const F& f) const {
    auto typed = [&](auto type) {
      if (p.b.packed) return f(type, static_cast<PackedSource<type()>*>(nullptr));
      f(type, static_cast<RowSource<type()>*>(nullptr));
    };
    if (p.b.type == DType::kE4M3) return typed(std::integral_constant<DType, DType::kE4M3>());
    if (p.b.type == DType::kE5M2) return typed(std::integral_constant<DType, DType::kE5M2>());
    typed(std::integral_constant<DType, DType::kBF16>());
  }

  // Rows of A from m on, with the next part of k.
  Bf16Tile tile(int64_t m, int64_t n, int64_t k, int64_t count) const {
    const int64_t segment = k / kSegment;
    return {rows.row(&g, u.row_first + m) + k,
            rows.ld(),
            panel,
            kPart / 2 * kPanelLanes,
            ceil_div(count, kSegment),
            scale + (rows_share_scales() ? 0 : m * segments()) + segment,
            rows_share_scales() ? 0 : segments(),
            scales_by_column(p) ? col_scale + segment * kPanelCols : nullptr,
            c + m * kLdc + n,
            kLdc};
  }

  // Few rows: they follow the codes along whole rows of B, which is what the memory does best.
  template <DType type, typename Source>
  void multiply_narrow() {
    constexpr int kGroups = kNarrowGroups<Source>;
    for (int64_t n = 0; n < u.cols; n += kGroups * kPanelLanes) {
      if (scales_by_column(p)) tiles.finish();  // which are about to change
      put_col_scales(n, kGroups * kPanelLanes);
      for (int64_t k = 0; k < g.k; k += kPart) {
        const int64_t count = std::min(kPart, g.k - k);
        Source sources[kGroups];
        for (int g = 0; g < kGroups; ++g) find(sources[g], n + g * kPanelLanes, k, kGroups);
        multiply_codes<type>(tile(0, n, k, count), u.rows, sources, count, panel, tiles);
      }
    }
    tiles.finish();
  }

  template <DType type, typename Source>
  void multiply() {
    for (int64_t n = 0; n < u.cols; n += kPanelCols) {
      put_col_scales(n, kPanelCols);
      for (int64_t k = 0; k < g.k; k += kPart) {
        const int64_t count = std::min(kPart, g.k - k);
        for (int group = 0; group < kTileGroups; ++group) {
          Source source;
          find(source, n + group * kPanelLanes, k, kTileGroups);
          write_panel<type>(panel + group * kPart / 2 * kPanelLanes, source, count,
                            whole_segments(count));
        }
        for (int64_t m = 0; m < u.rows; m += kBlockRows) {
          tiles.multiply(tile(m, n, k, count), std::min(kBlockRows, u.rows - m));
        }
      }
    }
  }

  void run() {
    std::memset(c, 0, u.rows * kLdc * sizeof(float));
    put_row_scales();
    with_source([&](auto type, auto* source) {
      using Source = std::remove_pointer_t<decltype(source)>;
      if (u.rows <= kNarrowRows<Source>) {
        multiply_narrow<type(), Source>();
      } else {
        multiply<type(), Source>();
      }
    });
  }
};

inline int64_t unit_floats(const GroupedGemm&, const Unit& u) { return Bf16Unit::floats(u); }

// c[rows, kLdc] = the sums of a unit; `after` is the packed_start of what is read next, or null.
inline void unit_sums(const GroupedGemm& p, const PackedRows& rows, const Unit& u, float* buffer,
                      float* c, const char* after) {
  Bf16Unit(p, rows, u, buffer, c, after).run();
}
