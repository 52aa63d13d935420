// Scores of the lightning indexer. A tile of keys is decoded once, transposed so that lanes are
// tokens: relu and the weighted sum over heads need no sums across lanes, and whatever a token's
// row holds (NaN, memory that nobody wrote) stays in its own column.

constexpr int kHeads = kRegisters / 4, kTokenVecs = 3;  // three quarters of them accumulate
constexpr int64_t kPanel = kTokenVecs * kLanes;
constexpr int64_t kTile = 48;  // tokens decoded at a time: 24 KiB at a depth of 128
static_assert(kTile % kPanel == 0 && kTile % kKeyGroup == 0);

// sums[t] += sum_h weights[h] * relu(q[h] . keys[:, t]) for one panel of tokens, heads in order.
// q is [heads, depth], keys [depth, kTile].
template <int heads>
inline void score_panel(const float* q, int64_t depth, const float* weights, const float* keys,
                        float* sums) {
  Vec acc[heads][kTokenVecs];
  for (auto& head : acc) {
    for (Vec& v : head) v = zero();
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vec k[kTokenVecs];
    for (int v = 0; v < kTokenVecs; ++v) {
      Vec x = load(keys + d * kTile + v * kLanes);
      keep(x);
      k[v] = x;
    }
    for (int h = 0; h < heads; ++h) {
      Vec x = set1(q[h * depth + d]);
      for (int v = 0; v < kTokenVecs; ++v) acc[h][v] = fma(x, k[v], acc[h][v]);
    }
  }
  Vec none = zero();
  keep(none);  // apart from the zeros above, which would occupy a register through the loop
  for (int v = 0; v < kTokenVecs; ++v) {
    Vec sum = load(sums + v * kLanes);
    for (int h = 0; h < heads; ++h) {
      // The order matters: maximum() yields its second operand where one is NaN.
      sum = fma(set1(weights[h]), maximum(none, acc[h][v]), sum);
    }
    store(sums + v * kLanes, sum);
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

// Decodes kKeyGroup rows of codes into columns of a tile. Returns whether an e4m3 NaN code passed
// that decoding does not show.
template <DType type>
inline bool put_group(float* tile, const char* codes, int64_t row_stride, int64_t depth) {
  NanWatch watch;
  alignas(64) char columns[16][16];
  for (int64_t d = 0; d < depth; d += 16) {
    transpose16(codes + d, row_stride, columns);
    if constexpr (type == DType::kE4M3) {
      for (int i = 0; i < 16; i += 2) watch.look32(columns[i]);
    }
    for (int i = 0; i < 16; ++i) {
      Vec v[16 / kLanes];
      decode16<type>(columns[i], v);
      for (int j = 0; j < 16 / kLanes; ++j) store(tile + (d + i) * kTile + j * kLanes, v[j]);
    }
  }
  return watch.found();
}

// One unit of work: its operands, its buffers and the steps.
struct ScoreWork {
  const IndexerScores& p;
  const ScoreUnit& u;
  float *q, *weights;           // [rows, heads, depth], [rows, heads]
  float *tile, *scales, *sums;  // [depth, kTile], [kTile], [kTile]
  char* tail;                   // [kKeyGroup, depth]

  int64_t row(int64_t i) const { return u.sequence * p.rows + u.row_first + i; }

  void pack_queries() const {
    // Decoding leaves a power of two out of queries and keys: both go into the queries.
    const float factor = decode_factor(p.q_type) * decode_factor(p.keys.type);
    Operand shape{};
    shape.k_stride = 1;
    for (int64_t i = 0; i < u.rows; ++i) {
      const char* src = p.q + u.sequence * p.q_stride[0] + (u.row_first + i) * p.q_stride[1];
      for (int64_t h = 0; h < p.heads; ++h) {
        float* dst = q + (i * p.heads + h) * p.depth;
        with_type(p.q_type, [&](auto type) {
          put_row<type()>(dst, shape, src + h * p.q_stride[2], p.depth, factor);
        });
        weights[i * p.heads + h] = p.weights[row(i) * p.weight_stride[0] + h * p.weight_stride[1]];
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
    if (put_group<type>(tile + at, codes, row_stride, p.depth)) {
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

  // Logits of row i for tokens [lo, hi) of the tile, not yet scaled, into `sums`.
  void score(int64_t i, int64_t lo, int64_t hi) const {
    for (int64_t t = 0; t < kTile; t += kLanes) store(sums + t, zero());
    for (int64_t h = 0; h < p.heads; h += kHeads) {
      with_count<kHeads>(p.heads - h, [&](auto heads) {
        const float* rows = q + (i * p.heads + h) * p.depth;
        for (int64_t t = lo / kPanel * kPanel; t < hi; t += kPanel) {
          score_panel<heads()>(rows, p.depth, weights + i * p.heads + h, tile + t, sums + t);
        }
      });
    }
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
        score(i, lo, hi);
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

void indexer_scores(const IndexerScores& p) {
  const int64_t rows_to_clean = p.clean ? p.batch * p.rows : 0;
  parallel_for(p.num_units + rows_to_clean, p.num_threads, [&](int64_t i) {
    if (i >= p.num_units) return clean_row(p, i - p.num_units);
    const ScoreUnit& u = p.units[i];
    const int64_t heads = u.rows * p.heads;
    float* buffer = static_cast<float*>(
        scratch((p.depth * kTile + 2 * kTile + heads * (p.depth + 1)) * sizeof(float) +
                kKeyGroup * p.depth));
    float* scales = buffer + p.depth * kTile;
    float* sums = scales + kTile;
    float* q = sums + kTile;
    float* weights = q + heads * p.depth;
    char* tail = reinterpret_cast<char*>(weights + heads);
    const ScoreWork work{p, u, q, weights, buffer, scales, sums, tail};
    if (p.keys.type == DType::kE5M2) {
      work.run<DType::kE5M2>();
    } else {
      work.run<DType::kE4M3>();
    }
  });
}
