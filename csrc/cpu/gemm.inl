// Grouped products out[r, n] = sum_k A[r, k] B[n, k]. Rows of A are decoded to float32 with every
// scale folded in (those of A, and those of the columns of B at hand), so the inner loops pay
// nothing per element for scales. B is decoded in registers for up to kRows rows of A, and once
// into L1 for more.

constexpr int64_t kDepth = 384;  // k range kept in cache at a time, a multiple of 128

// One unit of work: its operands, its buffers and the steps.
struct GemmUnit {
  const GroupedGemm& p;
  const Unit& u;
  const Group& g;
  float *a, *b, *c;  // [rows, kDepth], [kCols, kDepth], [rows, kBlockN]

  // Scales of B by column cannot be folded into A: they go into B, or to the end where they do
  // not depend on k.
  bool scales_by_column() const { return p.b_scale.data != nullptr && p.b_scale.row_block == 1; }
  bool scales_at_end() const { return scales_by_column() && p.b_scale.k_stride == 0; }
  bool scales_in_b() const { return scales_by_column() && !scales_at_end(); }

  bool decodes_in_registers() const {
    return u.rows <= kRows && p.b.k_stride == 1 && !scales_in_b();
  }

  int64_t row(int64_t i) const {
    return g.rows != nullptr ? g.rows[u.row_first + i] : g.first + u.row_first + i;
  }

  void pack_a(int64_t k, int64_t count) const {
    float factor = decode_factor(p.a.type) * decode_factor(p.b.type);
    auto fold = [&](int64_t k_block) {
      return scales_by_column() ? factor
                                : factor * scale_at(p.b_scale, g.weight, u.col_first, k_block);
    };
    for (int64_t m = 0; m < u.rows; ++m) {
      pack_row(a + m * kDepth, p.a, p.a_scale, g, g.a_group, row(m), k, count, fold);
    }
  }

  void pack_b(int64_t col, int64_t cols, int64_t k, int64_t count) const {
    static constexpr Scales kNone{nullptr, 0, 0, 0, 1, INT64_MAX};
    const Scales& scales = scales_in_b() ? p.b_scale : kNone;
    for (int64_t n = 0; n < kCols; ++n) {
      float* dst = b + n * kDepth;
      if (n < cols) {
        pack_row(dst, p.b, scales, g, g.weight, col + n, k, count, [](int64_t) { return 1.0f; });
      } else {
        for (int64_t i = 0; i < padded(count); i += kLanes) store(dst + i, zero());
      }
    }
  }

  void packed(int64_t k, int64_t count) const {
    for (int64_t n = 0; n < u.cols; n += kCols) {
      pack_b(u.col_first + n, std::min<int64_t>(kCols, u.cols - n), k, count);
      for (int64_t m = 0; m < u.rows; m += kRows) {
        with_rows(u.rows - m, [&](auto rows) {
          dot_tile<rows()>(a + m * kDepth, kDepth, b, kDepth, padded(count), c + m * kBlockN + n,
                           kBlockN);
        });
      }
    }
  }

  template <DType type>
  void direct(int64_t k, int64_t count) const {
    alignas(64) char copies[kCols][kDepth * 4];
    for (int64_t n = 0; n < u.cols; n += kCols) {
      const char* codes[kCols];
      for (int64_t j = 0; j < kCols; ++j) {
        // Columns past the end repeat the last one; their sums are not stored.
        int64_t col = u.col_first + std::min(n + j, u.cols - 1);
        codes[j] = element(p.b, g.weight, col, g.k_first + k);
        if (padded(count) != count) {
          const int64_t bytes = count * size_of(type);
          std::memcpy(copies[j], codes[j], bytes);
          std::memset(copies[j] + bytes, 0, padded(count) * size_of(type) - bytes);
          codes[j] = copies[j];
        }
      }
      with_rows(u.rows, [&](auto rows) {
        decode_tile<type, rows()>(a, kDepth, codes, padded(count), c + n, kBlockN);
      });
    }
  }

  void run() const {
    std::memset(c, 0, u.rows * kBlockN * sizeof(float));
    for (int64_t k = 0; k < g.k; k += kDepth) {
      const int64_t count = std::min(kDepth, g.k - k);
      pack_a(k, count);
      if (decodes_in_registers()) {
        with_type(p.b.type, [&](auto type) { direct<type()>(k, count); });
      } else {
        packed(k, count);
      }
    }
    for (int64_t m = 0; m < u.rows; ++m) {
      float* sums = c + m * kBlockN;
      if (scales_at_end()) {
        for (int64_t n = 0; n < u.cols; ++n) {
          sums[n] *= scale_at(p.b_scale, g.weight, u.col_first + n, 0);
        }
      }
      finish_row(p, g, row(m), u.col_first, u.cols, sums);
    }
    if (p.signal.data != nullptr) {
      int32_t* progress = p.signal.data + g.a_group * p.signal.per_group + u.row_block;
      __atomic_fetch_add(progress, 1, __ATOMIC_RELEASE);
    }
  }
};

void grouped_gemm(const GroupedGemm& p) {
  const Schedule schedule(p, p.signal.data != nullptr || p.out.scale != nullptr);
  parallel_for(schedule.size(), p.num_threads, [&](int64_t i) {
    const Unit unit = schedule.at(i);
    // Sized by the rows at hand, but padded so that stores of whole vectors stay inside.
    const int64_t rows = unit.rows;
    float* a =
        static_cast<float*>(scratch((rows * (kDepth + kBlockN) + kCols * kDepth) * sizeof(float)));
    float* b = a + rows * kDepth;
    GemmUnit{p, unit, *unit.group, a, b, b + kCols * kDepth}.run();
  });
}
