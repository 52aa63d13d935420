// Scores of the lightning indexer: units of work, each a run of tokens against packed queries, a
// tile of tokens at a time. A form says what packed queries and tiles of keys are.

constexpr int64_t kTile = 48;  // tokens decoded at a time: 24 KiB of floats at a depth of 128
static_assert(kTile % kKeyGroup == 0);

template <typename F>
inline void with_code_type(DType type, const F& f) {
  if (type == DType::kE5M2) return f(std::integral_constant<DType, DType::kE5M2>());
  f(std::integral_constant<DType, DType::kE4M3>());
}

// Weights are there for whole vectors of heads, zeros past the last.
inline int64_t whole_heads(const IndexerScores& p) { return ceil_div(p.heads, 16) * 16; }

// One unit of work: its operands, its buffers and the steps. Of a Form it wants
//   pack_row<type>(i, src): the queries of row i of the unit
//   put_group<type>(at, codes, row_stride): kKeyGroup keys into the tile's tokens from `at` on;
//     whether an e4m3 NaN code passed that decoding does not show
//   score(i, lo, hi, weights, sums): logits of row i for tokens [lo, hi) of the tile, not scaled
template <typename Form>
struct ScoreWork {
  const IndexerScores& p;
  const ScoreUnit& u;
  Form form;
  float *weights, *scales, *sums;  // [rows, whole_heads], [kTile], [kTile]
  char* tail;                      // [kKeyGroup, depth]

  static int64_t bytes(const IndexerScores& p, int64_t rows) {
    return Form::bytes(p, rows) +
           (rows * whole_heads(p) + 2 * kTile) * static_cast<int64_t>(sizeof(float)) +
           kKeyGroup * p.depth;
  }
  ScoreWork(const IndexerScores& p, const ScoreUnit& u, char* buffer)
      : p(p),
        u(u),
        form(p, buffer),
        weights(reinterpret_cast<float*>(buffer + Form::bytes(p, u.rows))),
        scales(weights + u.rows * whole_heads(p)),
        sums(scales + kTile),
        tail(reinterpret_cast<char*>(sums + kTile)) {}

  int64_t row(int64_t i) const { return u.sequence * p.rows + u.row_first + i; }

  void pack_queries() const {
    std::fill(weights, weights + u.rows * whole_heads(p), 0.0f);
    for (int64_t i = 0; i < u.rows; ++i) {
      const char* src = p.q + u.sequence * p.q_stride[0] + (u.row_first + i) * p.q_stride[1];
      with_code_type(p.q_type, [&](auto type) { form.template pack_row<type()>(i, src); });
      for (int64_t h = 0; h < p.heads; ++h) {
        weights[i * whole_heads(p) + h] =
            p.weights[row(i) * p.weight_stride[0] + h * p.weight_stride[1]];
      }
    }
  }

  // Loads the group of tokens from t on into columns [at, at + kKeyGroup) of the tile. False where
  // the block table names no block.
  template <DType type>
  bool load_group(int64_t t, int64_t at) const {
    const Keys& k = p.keys;
    int64_t block = 0, in_block = t;
    if (k.block_table != nullptr) {
      block = k.block_table[u.sequence * k.table_stride + t / k.block_size];
      in_block = t % k.block_size;
      if (block < 0 || block >= k.num_blocks) return false;
    }
    const int64_t count = std::min(kKeyGroup, k.block_size - in_block);
    const char* codes = k.codes + block * k.block_stride + in_block * k.row_stride;
    const char* from = k.scales + block * k.block_stride +
                       in_block * k.scale_stride * static_cast<int64_t>(sizeof(float));
    int64_t row_stride = k.row_stride;
    if (count < kKeyGroup) {
      std::memset(tail, 0, kKeyGroup * p.depth);
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(tail + i * p.depth, codes + i * row_stride, p.depth);
      }
      codes = tail;
      row_stride = p.depth;
    }
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(scales + at + i, from + i * k.scale_stride * sizeof(float), sizeof(float));
    }
    if (form.template put_group<type>(at, codes, row_stride)) {
      // A NaN in a key makes all of its logits NaN, which its scale can do.
      for (int64_t i = 0; i < count; ++i) {
        const char* code = codes + i * row_stride;
        for (int64_t d = 0; d < p.depth; ++d) {
          if (is_nan_code(static_cast<uint8_t>(code[d]))) scales[at + i] = NAN;
        }
      }
    }
    return true;
  }

  template <DType type>
  void run() const {
    pack_queries();
    for (int64_t t0 = u.token_first; t0 < u.token_end; t0 += kTile) {
      const int64_t end = std::min(t0 + kTile, u.token_end);
      bool missing[kTile / kKeyGroup] = {}, any_missing = false;
      for (int64_t t = t0; t < end; t += kKeyGroup) {
        bool& gone = missing[(t - t0) / kKeyGroup];
        gone = !load_group<type>(t, t - t0);
        any_missing |= gone;
      }
      for (int64_t i = 0; i < u.rows; ++i) {
        const TokenRange& seen = p.ranges[row(i)];
        const int64_t lo = std::max(seen.first, t0) - t0, hi = std::min(seen.end, end) - t0;
        if (lo >= hi) continue;
        form.score(i, lo, hi, weights + i * whole_heads(p), sums);
        float* out = p.out + row(i) * p.out_stride + t0 - seen.shift;
        for (int64_t t = lo; t < hi; ++t) out[t] = sums[t] * scales[t];
        for (int64_t t = lo; any_missing && t < hi; ++t) {
          if (missing[t / kKeyGroup]) out[t] = p.clean_value;
        }
      }
    }
  }
};

inline void clean_row(const IndexerScores& p, int64_t row) {
  const TokenRange& seen = p.ranges[row];
  float* out = p.out + row * p.out_stride;
  const bool empty = seen.first >= seen.end;
  const int64_t before = empty ? 0 : seen.first - seen.shift;
  const int64_t after = empty ? 0 : seen.end - seen.shift;
  std::fill(out, out + before, p.clean_value);
  std::fill(out + after, out + p.columns, p.clean_value);
}

template <typename Form>
inline void score_units(const IndexerScores& p) {
  const int64_t rows_to_clean = p.clean ? p.batch * p.rows : 0;
  parallel_for(p.num_units + rows_to_clean, p.num_threads, [&](int64_t i) {
    if (i >= p.num_units) return clean_row(p, i - p.num_units);
    const ScoreUnit& u = p.units[i];
    auto* buffer = static_cast<char*>(scratch(ScoreWork<Form>::bytes(p, u.rows)));
    const ScoreWork<Form> work(p, u, buffer);
    with_code_type(p.keys.type, [&](auto type) { work.template run<type()>(); });
  });
}
