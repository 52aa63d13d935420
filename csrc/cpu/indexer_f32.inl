// Scores in float32. Keys are transposed when they are decoded so that lanes are tokens: relu and
// the weighted sum over heads need no sums across lanes, and whatever a token's row holds (NaN,
// memory that nobody wrote) stays in its own column.

constexpr int kHeads = kRegisters / 4, kTokenVecs = 3;  // three quarters of them accumulate
constexpr int64_t kPanel = kTokenVecs * kLanes;
static_assert(kTile % kPanel == 0);

// sums[t] += sum_h weights[h] * relu(q[h] . keys[:, t]) for one panel of tokens, heads in order.
// q is [heads, depth], keys [depth, kTile].
template <int heads>
inline void score_panel(const float* q, int64_t depth, const float* weights, const float* keys,
                        float* sums) {
  Vec acc[heads][kTokenVecs];
  clear(acc);
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

// Decodes kKeyGroup rows of codes into columns of a tile. Returns whether an e4m3 NaN code passed
// that decoding does not show.
template <DType type>
inline bool transpose_group(float* tile, const char* codes, int64_t row_stride, int64_t depth) {
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

struct FloatForm {
  const IndexerScores& p;
  float *q, *tile;  // [rows, heads, depth], [depth, kTile]

  static int64_t bytes(const IndexerScores& p, int64_t rows) {
    return (rows * p.heads + kTile) * p.depth * static_cast<int64_t>(sizeof(float));
  }
  FloatForm(const IndexerScores& p, char* buffer)
      : p(p), q(reinterpret_cast<float*>(buffer) + kTile * p.depth), tile(q - kTile * p.depth) {}

  template <DType type>
  void pack_row(int64_t i, const char* src) const {
    // Decoding leaves a power of two out of queries and keys: both go into the queries.
    const float factor = decode_factor(type) * decode_factor(p.keys.type);
    for (int64_t h = 0; h < p.heads; ++h) {
      put_row<type>(q + (i * p.heads + h) * p.depth, kContiguous, src + h * p.q_stride[2], p.depth,
                    factor);
    }
  }

  template <DType type>
  bool put_group(int64_t at, const char* codes, int64_t row_stride) const {
    return transpose_group<type>(tile + at, codes, row_stride, p.depth);
  }

  void score(int64_t i, int64_t lo, int64_t hi, const float* weights, float* sums) const {
    for (int64_t t = 0; t < kTile; t += kLanes) store(sums + t, zero());
    for (int64_t h = 0; h < p.heads; h += kHeads) {
      with_count<kHeads>(p.heads - h, [&](auto heads) {
        const float* rows = q + (i * p.heads + h) * p.depth;
        for (int64_t t = lo / kPanel * kPanel; t < hi; t += kPanel) {
          score_panel<heads()>(rows, p.depth, weights + h, tile + t, sums + t);
        }
      });
    }
  }
};

void indexer_scores(const IndexerScores& p) { score_units<FloatForm>(p); }
