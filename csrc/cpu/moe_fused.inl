// A MoE layer in one parallel region: gate and up with SwiGLU behind them, then down with the
// weighted sum behind it. What is computed for one token, in which order, does not depend on the
// others.

// x = x rounded to a 16-bit type; x has room for whole steps of 16.
inline void round_floats(float* x, DType type, int64_t count) {
  alignas(64) uint16_t codes[kLdc];
  store_row(codes, type, x, count);
  with_wide_type(type, [&](auto wide) {
    put_row<wide()>(x, kContiguous, reinterpret_cast<const char*>(codes), count, 1.0f);
  });
}

// Rounds a group of columns to e4m3 and back; returns the scale that the result lacks.
inline float quantise_floats(float* x, int64_t count) {
  const float amax = plain_floats<DType::kF32>(x, reinterpret_cast<const char*>(x), count);
  const float scale = group_scale(amax, 1e-10f, DType::kE4M3, false);
  alignas(64) uint8_t codes[kLdc];
  store_codes<DType::kE4M3>(codes, x, count, scale);
  put_row<DType::kE4M3>(x, kContiguous, reinterpret_cast<const char*>(codes), count,
                        decode_factor(DType::kE4M3));
  return scale;
}

class FusedLayer {
 public:
  explicit FusedLayer(const FusedExperts& p)
      : p_(p),
        down_(p.down),
        entering_(p.gate),
        inner_ld_(packed_ld(p.gate.n)),
        inner_scales_(ceil_div(p.gate.n, FusedExperts::kQuantGroup)),
        // Columns that are rounded together stay together.
        inner_units_(p.gate, p.quantises ? kBlockN : few_columns(p.gate, kUnitRows), kUnitRows),
        out_cols_(few_columns(1, p.down.n, p.down.num_threads)) {
    const int64_t inner_bytes = p.num_rows * inner_ld_ * static_cast<int64_t>(sizeof(uint16_t));
    const int64_t scale_bytes =
        p.quantises ? p.num_rows * inner_scales_ * static_cast<int64_t>(sizeof(float)) : 0;
    auto whole_lines = [](int64_t bytes) { return ceil_div(bytes, 64) * 64; };
    auto* memory = static_cast<char*>(shared_scratch(
        whole_lines(entering_.bytes()) + whole_lines(inner_bytes) + whole_lines(scale_bytes)));
    entering_.place(memory);
    inner_ = reinterpret_cast<uint16_t*>(memory + whole_lines(entering_.bytes()));
    scale_ = reinterpret_cast<float*>(reinterpret_cast<char*>(inner_) + whole_lines(inner_bytes));
    down_.a = {inner_, p.quantises ? DType::kBF16 : p.type, 0, inner_ld_, 1};
    down_.a_scale = {p.quantises ? scale_ : nullptr, 0, inner_scales_, 1, 1,
                     FusedExperts::kQuantGroup};
  }

  void run() {
    PackedRows leaving(down_);
    leaving.adopt(inner_, inner_ld_);
    const Packing pack(entering_);
    auto gate_and_up = [&](int64_t i) {
      put_inner(inner_units_.at(i), packed_start_after(p_.gate, inner_units_, i));
    };
    auto down = [&](int64_t i) { put_out(leaving, i * out_cols_); };
    parallel_steps(down_.num_threads, items(pack.size(), pack),
                   items(inner_units_.size(), gate_and_up),
                   items(ceil_div(down_.n, out_cols_), down));
  }

 private:
  void put_inner(const Unit& unit, const char* after) {
    const int64_t floats = std::max(unit_floats(p_.gate, unit), unit_floats(p_.up, unit));
    const int64_t sums = unit.rows * kLdc;
    auto* buffer = static_cast<float*>(scratch((floats + 2 * sums) * sizeof(float)));
    float *gate = buffer + floats, *up = gate + sums;
    unit_sums(p_.gate, entering_, unit, buffer, gate, packed_start(p_.up, unit));
    unit_sums(p_.up, entering_, unit, buffer, up, after);
    const Group& g = down_.groups[unit.group - p_.gate.groups];
    for (int64_t m = 0; m < unit.rows; ++m) {
      put_inner_row(g.first + unit.row_first + m, unit, gate + m * kLdc, up + m * kLdc);
    }
  }

  void put_inner_row(int64_t row, const Unit& unit, float* gate, float* up) {
    if (p_.rounds) {
      round_floats(gate, p_.type, unit.cols);
      round_floats(up, p_.type, unit.cols);
    }
    alignas(64) float product[kLdc];
    swiglu_floats<DType::kF32>(product, reinterpret_cast<const char*>(gate),
                               reinterpret_cast<const char*>(up), unit.cols, {{}, p_.limit, false});
    DType type = p_.type;
    if (p_.quantises) {
      round_floats(product, type, unit.cols);
      scale_[row * inner_scales_ + unit.col_first / FusedExperts::kQuantGroup] =
          quantise_floats(product, unit.cols);
      type = DType::kBF16;  // which holds codes exactly
    }
    uint16_t* to = inner_ + row * inner_ld_;
    store_row(to + unit.col_first, type, product, unit.cols);
    const int64_t end = unit.col_first + unit.cols;
    if (end == p_.gate.n) std::memset(to + end, 0, (inner_ld_ - end) * sizeof(uint16_t));
  }

  // One block of columns of the output, for all experts and tokens.
  void put_out(const PackedRows& leaving, int64_t col) {
    const int64_t cols = std::min(out_cols_, down_.n - col);
    auto units = [&](const auto& use) {
      for (int64_t i = 0; i < down_.num_groups; ++i) {
        const Group& g = down_.groups[i];
        for (int64_t row = 0; row < g.count; row += kUnitRows) {
          use(Unit{&g, row, std::min(kUnitRows, g.count - row), col, cols});
        }
      }
    };
    int64_t floats = 0;
    units([&](const Unit& unit) { floats = std::max(floats, unit_floats(down_, unit)); });
    floats = ceil_div(floats, 16) * 16;
    const int64_t sums = p_.num_rows * kLdc, addends = ceil_div(p_.topk * sizeof(Addend), 64) * 16;
    auto* buffer = static_cast<float*>(scratch((floats + sums + addends) * sizeof(float)));
    float* rows = buffer + floats;
    units([&](const Unit& unit) {
      const Group* next = unit.group + 1;
      const bool last = next == down_.groups + down_.num_groups;
      unit_sums(down_, leaving, unit, buffer, rows + (unit.group->first + unit.row_first) * kLdc,
                last ? nullptr : packed_start(down_, {next, 0, 0, col, cols}));
    });
    for (int64_t row = 0; row < p_.num_rows && p_.rounds; ++row) {
      round_floats(rows + row * kLdc, p_.type, cols);
    }
    auto* of_token = reinterpret_cast<Addend*>(rows + sums);
    for (int64_t token = 0; token < p_.num_tokens; ++token) {
      int64_t count = 0;
      for (int64_t j = 0; j < p_.topk; ++j) {
        const int64_t row = p_.row_of[token * p_.topk + j];
        if (row < 0) continue;
        of_token[count++] = {reinterpret_cast<const char*>(rows + row * kLdc),
                             slot_weight(p_.weights, token, j)};
      }
      alignas(64) float total[kLdc];
      weighted_sum<DType::kF32>(total, of_token, count, 0, cols);
      store_row(at(p_.out, token, col), p_.out.type, total, cols);
    }
  }

  const FusedExperts& p_;
  GroupedGemm down_;
  PackedRows entering_;
  int64_t inner_ld_, inner_scales_;
  Schedule inner_units_;
  int64_t out_cols_;
  uint16_t* inner_;  // [num_rows, inner_ld]
  float* scale_;     // [num_rows, inner_scales]
};
