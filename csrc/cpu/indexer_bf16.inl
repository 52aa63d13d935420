// Scores from products of BF16. Keys are decoded in the order of memory; queries are packed so that
// lanes are heads, which are summed in a fixed order for each token alone.

constexpr int kHeadVecs = 4;  // at a time

// sums[t][lane] += weight * relu(product) over `vecs` vectors of heads, for one tile of tokens from
// `keys` on. Heads past the last give nothing, even where a key is infinite.
template <int vecs>
inline void score_heads(const uint16_t* keys, const uint16_t* q, int64_t depth,
                        const float* weights, int64_t heads, float* sums) {
  __mmask16 masks[vecs];
  for (int v = 0; v < vecs; ++v) {
    masks[v] = heads < (v + 1) * kLanes ? (1u << (heads - v * kLanes)) - 1 : 0xffff;
  }
  bf16_tile<vecs>(keys, depth, q, depth, [&](int t, const Vec(&products)[vecs]) {
    Vec sum = load(sums + t * kLanes);
    for (int v = 0; v < vecs; ++v) {
      // The order matters: the second operand is taken where one is NaN.
      const Vec positive = _mm512_maskz_max_ps(masks[v], zero(), products[v]);
      sum = fma(load(weights + v * kLanes), positive, sum);
    }
    store(sums + t * kLanes, sum);
  });
}

struct Bf16Form {
  const IndexerScores& p;
  int64_t depth, vecs;  // numbers of a row, vectors of heads
  float* lanes;         // [kTile, kLanes], sums of each lane's heads
  uint16_t *tile, *q;   // [kTile, depth], [rows, vecs, depth / 2, kLanes, 2]
  TileSession session;

  static int64_t bytes(const IndexerScores& p, int64_t rows) {
    const int64_t depth = whole_bf16_steps(p.depth);
    return kTile * kLanes * static_cast<int64_t>(sizeof(float)) +
           (kTile + rows * whole_heads(p)) * depth * static_cast<int64_t>(sizeof(uint16_t));
  }
  Bf16Form(const IndexerScores& p, char* buffer)
      : p(p),
        depth(whole_bf16_steps(p.depth)),
        vecs(whole_heads(p) / kLanes),
        lanes(reinterpret_cast<float*>(buffer)),
        tile(reinterpret_cast<uint16_t*>(lanes + kTile * kLanes)),
        q(tile + kTile * depth) {}

  template <DType type>
  void pack_row(int64_t i, const char* src) const {
    for (int64_t v = 0; v < vecs; ++v) {
      // No key is in the tile yet: it serves for the rows of heads.
      const int64_t first = v * kLanes, count = std::min<int64_t>(kLanes, p.heads - first);
      std::fill(tile + count * depth, tile + kLanes * depth, 0);
      for (int64_t h = 0; h < count; ++h) {
        decode_to_bf16<type>(tile + h * depth, src + (first + h) * p.q_stride[2], p.depth);
      }
      uint16_t* to = q + (i * vecs + v) * depth * kLanes;
      for (int64_t k = 0; k < depth; k += 2 * kLanes) {
        Vec pairs[kLanes];
        for (int h = 0; h < kLanes; ++h) pairs[h] = _mm512_loadu_ps(tile + h * depth + k);
        transpose(pairs);
        for (int j = 0; j < kLanes; ++j) _mm512_storeu_ps(to + (k + 2 * j) * kLanes, pairs[j]);
      }
    }
  }

  template <DType type>
  bool put_group(int64_t at, const char* codes, int64_t row_stride) const {
    for (int64_t i = 0; i < kKeyGroup; ++i) {
      decode_to_bf16<type>(tile + (at + i) * depth, codes + i * row_stride, p.depth);
    }
    return false;
  }

  void score(int64_t i, int64_t lo, int64_t hi, const float* weights, float* sums) const {
    std::fill(lanes, lanes + kTile * kLanes, 0.0f);
    for (int64_t v = 0; v < vecs; v += kHeadVecs) {
      with_count<kHeadVecs>(vecs - v, [&](auto wide) {
        constexpr int64_t step = kTileRows<wide()>;
        static_assert(kTile % step == 0);
        for (int64_t t = lo / step * step; t < hi; t += step) {
          score_heads<wide()>(tile + t * depth, q + (i * vecs + v) * depth * kLanes, depth,
                              weights + v * kLanes, p.heads - v * kLanes, lanes + t * kLanes);
        }
      });
    }
    for (int64_t t = lo / 4 * 4; t < hi; t += 4) {
      Vec four[4];
      for (int j = 0; j < 4; ++j) four[j] = load(lanes + (t + j) * kLanes);
      float total[4];
      reduce4(four, total);
      std::memcpy(sums + t, total, sizeof(total));
    }
  }
};

void indexer_scores(const IndexerScores& p) { score_units<Bf16Form>(p); }
