// Operands as float32 rows: decoded, scaled and padded with zeros to a multiple of kStep.

constexpr int64_t kStep = 32;

inline int64_t padded(int64_t k) { return ceil_div(k, kStep) * kStep; }

inline const char* element(const Operand& x, int64_t group, int64_t row, int64_t k) {
  return static_cast<const char*>(x.data) +
         (group * x.group_stride + row * x.row_stride + k * x.k_stride) * size_of(x.type);
}

// Applies f with the operand's type as a compile-time constant.
template <typename F>
inline void with_type(DType type, const F& f) {
  switch (type) {
    case DType::kE4M3:
      return f(std::integral_constant<DType, DType::kE4M3>());
    case DType::kE5M2:
      return f(std::integral_constant<DType, DType::kE5M2>());
    case DType::kBF16:
      return f(std::integral_constant<DType, DType::kBF16>());
    case DType::kF16:
      return f(std::integral_constant<DType, DType::kF16>());
    case DType::kF32:
      return f(std::integral_constant<DType, DType::kF32>());
  }
}

// Calls f with `count`, or `most` where that is less, as a compile-time constant.
template <int most, typename F>
inline void with_count(int64_t count, const F& f) {
  if constexpr (most > 1) {
    if (count < most) return with_count<most - 1>(count, f);
  }
  f(std::integral_constant<int, most>());
}

template <int rows, int cols>
inline void clear(Vec (&acc)[rows][cols]) {
  for (auto& row : acc) {
    for (Vec& v : row) v = zero();
  }
}

// Row of A and of the output that is the i-th of a group.
inline int64_t row_of(const Group& g, int64_t i) {
  return g.rows != nullptr ? g.rows[i] : g.first + i;
}

// The packed panel that a unit of work begins with, or null where B is not packed.
inline const char* packed_start(const GroupedGemm& p, const Unit& u) {
  return p.b.packed ? element(p.b, u.group->weight, u.col_first, 0) : nullptr;
}

// The same of the unit after the i-th.
inline const char* packed_start_after(const GroupedGemm& p, const Schedule& schedule, int64_t i) {
  if (!p.b.packed || i + 1 == schedule.size()) return nullptr;
  return packed_start(p, schedule.at(i + 1));
}

// The panel with column n of a unit. Columns past the end repeat the last ones; their sums are not
// stored.
inline const char* packed_panel(const GroupedGemm& p, const Unit& u, int64_t n) {
  return element(p.b, u.group->weight, std::min(u.col_first + n, p.n - kPackedRows), 0);
}

// Bytes from element k of that panel to what is read next, where `groups` panels are read side by
// side, `part` elements at a time: the next part, the next panels, or what begins at `after`.
inline int64_t packed_far(const GroupedGemm& p, const Unit& u, int64_t n, int64_t k, int64_t part,
                          int64_t groups, const char* after) {
  const int64_t depth = u.group->k, step = kPackedRows * size_of(p.b.type);
  if (k + part < depth) return part * step;
  const int64_t panel = n / kPackedRows, last = (u.cols - 1) / kPackedRows;
  if (after == nullptr || panel / groups < last / groups) return (groups * depth - k) * step;
  return after - packed_panel(p, u, n) + (panel % groups * depth - k) * step;
}

inline bool scales_by_column(const GroupedGemm& p) {
  return p.b_scale.data != nullptr && p.b_scale.row_block == 1;
}

// What put_row() wants to know of elements that lie side by side.
constexpr Operand kContiguous{nullptr, DType::kF32, 0, 0, 1};

// What decoding leaves out of a type's values.
inline float decode_factor(DType type) { return type == DType::kE4M3 ? 256.0f : 1.0f; }

template <DType type>
inline void put16(float* dst, const void* src, Vec scale) {
  Vec v[16 / kLanes];
  decode16<type>(src, v);
  for (int i = 0; i < 16 / kLanes; ++i) store(dst + i * kLanes, mul(v[i], scale));
  if constexpr (type == DType::kE4M3) {
    if (has_nan16(src)) {
      const uint8_t* codes = static_cast<const uint8_t*>(src);
      for (int i = 0; i < 16; ++i) {
        if (is_nan_code(codes[i])) dst[i] = NAN;
      }
    }
  }
}

// dst[0 .. count) = scale * decoded elements; dst is filled up to a multiple of 16.
template <DType type>
inline void put_row(float* dst, const Operand& x, const char* src, int64_t count, float scale) {
  const int64_t size = size_of(type), step = x.k_stride * size;
  Vec factor = set1(scale);
  int64_t k = 0;
  if (x.k_stride == 1) {
    for (; k + 16 <= count; k += 16) put16<type>(dst + k, src + k * size, factor);
  }
  for (; k < count; k += 16) {
    alignas(64) char part[64] = {};
    for (int64_t i = 0; i < 16 && k + i < count; ++i) {
      std::memcpy(part + i * size, src + (k + i) * step, size);
    }
    put16<type>(dst + k, part, factor);
  }
}

inline float scale_at(const Scales& s, int64_t group, int64_t row, int64_t k_block) {
  return s.data == nullptr ? 1.0f
                           : s.data[group * s.group_stride + row / s.row_block * s.row_stride +
                                    k_block * s.k_stride];
}

// Calls body(offset, part, k block) for the parts of [k, k + count) that share a scale; k counts
// within the group, blocks as the scales count them.
template <typename Body>
inline void for_scale_blocks(const Scales& s, const Group& g, int64_t k, int64_t count,
                             const Body& body) {
  for (int64_t done = 0; done < count;) {
    int64_t block = (k + done) / s.k_block;
    int64_t part = std::min(count - done, (block + 1) * s.k_block - k - done);
    body(done, part, g.k_block_first + block);
    done += part;
  }
}

// Packs elements [k, k + count) of one row. Each is multiplied by the scale of its block and by
// fold(block).
template <typename Fold>
inline void pack_row(float* dst, const Operand& x, const Scales& s, const Group& g, int64_t group,
                     int64_t row, int64_t k, int64_t count, const Fold& fold) {
  for_scale_blocks(s, g, k, count, [&](int64_t offset, int64_t part, int64_t k_block) {
    float scale = scale_at(s, group, row, k_block) * fold(k_block);
    const char* src = element(x, group, row, g.k_first + k + offset);
    with_type(x.type, [&](auto type) { put_row<type()>(dst + offset, x, src, part, scale); });
  });
  for (int64_t i = ceil_div(count, 16) * 16; i < padded(count); i += kLanes) store(dst + i, zero());
}

// Rows whose neighbours lie side by side (row_stride 1) are decoded kBand at a time.
constexpr int64_t kBand = 16;

inline bool stored_by_column(const Operand& x) { return x.row_stride == 1 && x.k_stride != 1; }

// dst[r * ld + k] = scale[r] * element (r, k) for up to kBand rows; filled up to whole vectors.
template <DType type>
inline void put_band(float* dst, int64_t ld, const char* src, int64_t k_bytes, int64_t rows,
                     int64_t count, const float (&scale)[kBand]) {
  constexpr int kParts = kBand / kLanes;
  for (int64_t k = 0; k < count; k += kLanes) {
    Vec tile[kParts][kLanes];
    alignas(64) char codes[kLanes][kBand * 4] = {};
    bool nan = false;
    for (int64_t j = 0; j < kLanes; ++j) {
      if (k + j < count) std::memcpy(codes[j], src + (k + j) * k_bytes, rows * size_of(type));
      Vec v[kParts];
      decode16<type>(codes[j], v);
      for (int part = 0; part < kParts; ++part) tile[part][j] = v[part];
      if constexpr (type == DType::kE4M3) nan |= has_nan16(codes[j]);
    }
    for (int part = 0; part < kParts; ++part) {
      transpose(tile[part]);
      for (int64_t i = 0; i < kLanes && part * kLanes + i < rows; ++i) {
        const int64_t r = part * kLanes + i;
        store(dst + r * ld + k, mul(tile[part][i], set1(scale[r])));
      }
    }
    if (!nan) continue;
    for (int64_t j = 0; j < kLanes; ++j) {
      for (int64_t r = 0; r < rows; ++r) {
        if (is_nan_code(codes[j][r])) dst[r * ld + k + j] = NAN;
      }
    }
  }
}

// pack_row for up to kBand neighbouring rows of an operand that is stored by column.
template <typename Fold>
inline void pack_band(float* dst, int64_t ld, const Operand& x, const Scales& s, const Group& g,
                      int64_t group, int64_t row, int64_t rows, int64_t k, int64_t count,
                      const Fold& fold) {
  for_scale_blocks(s, g, k, count, [&](int64_t offset, int64_t part, int64_t k_block) {
    float scale[kBand];
    for (int64_t r = 0; r < rows; ++r) {
      scale[r] = scale_at(s, group, row + r, k_block) * fold(k_block);
    }
    const char* src = element(x, group, row, g.k_first + k + offset);
    with_type(x.type, [&](auto type) {
      put_band<type()>(dst + offset, ld, src, x.k_stride * size_of(x.type), rows, part, scale);
    });
  });
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = ceil_div(count, kLanes) * kLanes; i < padded(count); i += kLanes) {
      store(dst + r * ld + i, zero());
    }
  }
}

// Packs neighbouring rows by whichever of the two suits the operand.
template <typename Fold>
inline void pack_rows(float* dst, int64_t ld, const Operand& x, const Scales& s, const Group& g,
                      int64_t group, int64_t row, int64_t rows, int64_t k, int64_t count,
                      const Fold& fold) {
  const bool banded = stored_by_column(x);
  for (int64_t r = 0; r < rows; r += banded ? kBand : 1) {
    if (banded) {
      pack_band(dst + r * ld, ld, x, s, g, group, row + r, std::min(kBand, rows - r), k, count,
                fold);
    } else {
      pack_row(dst + r * ld, x, s, g, group, row + r, k, count, fold);
    }
  }
}
