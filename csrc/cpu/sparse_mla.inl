// Attention of absorbed MLA over selected rows of a cache. A tile of rows is decoded once for all
// heads of a unit. Scores are [row, head], so that the softmax needs no sums across lanes and a NaN
// in a head's query stays in that head.

inline int64_t whole_lanes(int64_t heads) { return ceil_div(heads, kLanes) * kLanes; }

// A softmax under way: largest score and sum of exponentials of each head [whole_lanes(heads)], and
// the sums of weighted rows [heads, value_dim], one after the other from `most` on.
struct MlaState {
  float* most;
  int64_t heads, width;

  static int64_t size(int64_t heads, int64_t width) {
    return 2 * whole_lanes(heads) + heads * width;
  }
  int64_t lanes() const { return whole_lanes(heads); }
  float* sums() const { return most + lanes(); }
  float* values() const { return most + 2 * lanes(); }

  void clear() const {
    // Not -inf: differences from it are never NaN, and scores of -inf weigh nothing.
    std::fill(most, most + lanes(), -0x1.fffffep127f);
    std::fill(sums(), sums() + lanes() + heads * width, 0.0f);
  }

  // Takes in what follows.
  void merge(const MlaState& next) const {
    for (int64_t first = 0; first < heads; first += kLanes) {
      const Vec mine = load(most + first), theirs = load(next.most + first);
      const Vec top = maximum(mine, theirs), minus = mul(top, set1(-1.0f));
      float factors[2][kLanes];
      store(factors[0], exponential(add(mine, minus)));
      store(factors[1], exponential(add(theirs, minus)));
      store(most + first, top);
      const Vec rest = mul(load(next.sums() + first), load(factors[1]));
      store(sums() + first, fma(load(sums() + first), load(factors[0]), rest));
      for (int64_t h = first; h < std::min(first + kLanes, heads); ++h) {
        float* to = values() + h * width;
        const float* from = next.values() + h * width;
        const Vec a = set1(factors[0][h - first]), b = set1(factors[1][h - first]);
        for (int64_t c = 0; c < width; c += kLanes) {
          store(to + c, fma(load(to + c), a, mul(load(from + c), b)));
        }
      }
    }
  }
};

// One unit of work: its operands, its buffers and the steps.
struct MlaWork {
  const SparseMla& p;
  const MlaUnit& u;
  int64_t ld;             // between rows of q and of the tile: an odd number of cache lines
  float *q, *tile;        // [heads, ld], [kMlaTile, ld]
  float *scores, *decay;  // [kMlaTile, lanes], [lanes]

  static int64_t row_size(const SparseMla& p) { return (p.depth / 16 | 1) * 16; }
  static int64_t size(const SparseMla& p, int64_t heads) {
    return (heads + kMlaTile) * row_size(p) + (kMlaTile + 1) * whole_lanes(heads);
  }
  MlaWork(const SparseMla& p, const MlaUnit& u, float* buffer)
      : p(p),
        u(u),
        ld(row_size(p)),
        q(buffer),
        tile(q + u.heads * ld),
        scores(tile + kMlaTile * ld),
        decay(scores + kMlaTile * whole_lanes(u.heads)) {}

  void pack_queries() const {
    for (int64_t h = 0; h < u.heads; ++h) {
      const int64_t from = u.token * p.q_stride[0] + (u.head_first + h) * p.q_stride[1];
      with_wide_type(p.q_type, [&](auto type) {
        put_row<type()>(q + h * ld, kContiguous, p.q + from * size_of(type), p.depth, p.scale);
      });
    }
    // Lanes of no head: whatever they hold, it must be numbers.
    std::fill(scores, scores + kMlaTile * whole_lanes(u.heads), 0.0f);
  }

  // Row of the i-th selection; null where there is none.
  const char* row_at(int64_t i) const {
    const LatentCache& kv = p.kv;
    const int64_t position = p.lengths != nullptr ? i : p.indices[u.token * p.index_stride + i];
    if (position < 0 || position >= kv.table_width * kv.block_size) return nullptr;
    const auto place = static_cast<uint32_t>(position), size = static_cast<uint32_t>(kv.block_size);
    const int64_t request = p.request_of[u.token * p.request_stride];
    const int64_t block = kv.block_table[request * kv.table_stride + place / size];
    if (block < 0 || block >= kv.num_blocks) return nullptr;
    const int64_t offset = block * kv.block_stride + place % size * kv.row_stride;
    return kv.data + offset * size_of(kv.type);
  }

  // The next rows from selection `i` on; returns their number, at most a tile.
  int64_t collect(int64_t& i, int64_t end, const char* (&rows)[kMlaTile]) const {
    int64_t count = 0;
    for (; i < end && count < kMlaTile; ++i) {
      const char* row = row_at(i);
      if (row != nullptr) rows[count++] = row;
    }
    return count;
  }

  template <DType type>
  void decode(const char* const* rows, int64_t count) const {
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t d = 0; d < p.depth; d += 16) {
        Vec v[16 / kLanes];
        decode16<type>(rows[t] + d * size_of(type), v);
        for (int i = 0; i < 16 / kLanes; ++i) store(tile + t * ld + d + i * kLanes, v[i]);
      }
    }
    const int64_t whole = ceil_div(count, kSums) * kSums;
    std::fill(tile + count * ld, tile + whole * ld, 0.0f);
  }

  void prefetch(const char* row) const {
    for (int64_t at = 0; at < p.depth * size_of(p.kv.type); at += 64) {
      __builtin_prefetch(row + at, 0, 2);
    }
  }

  void score(int64_t count) const {
    const int64_t lanes = whole_lanes(u.heads);
    for (int64_t h = 0; h < u.heads; h += kHeads) {
      with_count<kHeads>(u.heads - h, [&](auto heads) {
        score_rows<heads()>(q + h * ld, tile, ld, count, p.depth, scores + h, lanes);
      });
    }
  }

  // Scores to weights; the state's sums follow, its values are left to decay.
  void weigh(int64_t count, const MlaState& state) const {
    const int64_t lanes = state.lanes();
    for (int64_t h = 0; h < lanes; h += kLanes) {
      const Vec before = load(state.most + h);
      Vec top = before;
      for (int64_t t = 0; t < count; ++t) top = maximum(load(scores + t * lanes + h), top);
      const Vec minus = mul(top, set1(-1.0f));
      const Vec factor = exponential(add(before, minus));
      Vec sum = mul(load(state.sums() + h), factor);
      for (int64_t t = 0; t < count; ++t) {
        const Vec weight = exponential(add(load(scores + t * lanes + h), minus));
        store(scores + t * lanes + h, weight);
        sum = add(sum, weight);
      }
      store(state.most + h, top);
      store(state.sums() + h, sum);
      store(decay + h, factor);
    }
  }

  void add_values(int64_t count, const MlaState& state) const {
    const int64_t lanes = state.lanes(), vectors = p.value_dim / kLanes;
    for (int64_t h = 0; h < u.heads; h += kHeads) {
      with_count<kHeads>(u.heads - h, [&](auto heads) {
        constexpr int wide = kSums / heads();
        for (int64_t v = 0; v < vectors;) {
          // Passes of equal widths: a narrow one at the end would wait for its few sums.
          const int64_t left = vectors - v, passes = ceil_div(left, wide);
          with_count<wide>(ceil_div(left, passes), [&](auto vecs) {
            add_rows<heads(), vecs()>(scores + h, lanes, tile + v * kLanes, ld, count, decay + h,
                                      state.values() + h * p.value_dim + v * kLanes, p.value_dim);
            v += vecs();
          });
        }
      });
    }
  }

  template <DType type>
  void run(int64_t segment, const MlaState& state) const {
    state.clear();
    int64_t i = segment * u.segment;
    const int64_t end = std::min(i + u.segment, u.selections);
    const char* rows[2][kMlaTile];
    int64_t count = collect(i, end, rows[0]);
    for (int now = 0; count > 0; now ^= 1) {
      decode<type>(rows[now], count);
      const int64_t following = collect(i, end, rows[now ^ 1]);
      for (int64_t t = 0; t < following; ++t) prefetch(rows[now ^ 1][t]);
      score(count);
      weigh(count, state);
      add_values(count, state);
      count = following;
    }
  }

  void attend(int64_t segment, const MlaState& state) const {
    if (p.kv.type == DType::kBF16) {
      run<DType::kBF16>(segment, state);
    } else {
      run<DType::kF16>(segment, state);
    }
  }

  void finish(const MlaState& state) const {
    for (int64_t h = 0; h < u.heads; ++h) {
      float* values = state.values() + h * p.value_dim;
      const float sum = state.sums()[h];
      const Vec inverse = set1(sum == 0 ? 0 : 1 / sum);
      for (int64_t c = 0; c < p.value_dim; c += kLanes) {
        store(values + c, mul(load(values + c), inverse));
      }
      const int64_t to = u.token * p.out_stride[0] + (u.head_first + h) * p.out_stride[1];
      store_row(p.out + to * size_of(p.out_type), p.out_type, values, p.value_dim);
    }
  }
};

// Runs every segment of a unit one after the other.
void mla_whole_unit(const SparseMla& p, const MlaUnit& u) {
  const int64_t state_size = MlaState::size(u.heads, p.value_dim);
  auto* buffer =
      static_cast<float*>(scratch((2 * state_size + MlaWork::size(p, u.heads)) * sizeof(float)));
  const MlaState all{buffer, u.heads, p.value_dim};
  const MlaState next{buffer + state_size, u.heads, p.value_dim};
  const MlaWork work(p, u, buffer + 2 * state_size);
  work.pack_queries();
  all.clear();
  for (int64_t s = 0; s < u.num_segments; ++s) {
    work.attend(s, s == 0 ? all : next);
    if (s > 0) all.merge(next);
  }
  work.finish(all);
}

// Runs the segments of all units apart and merges those of a unit in order: the same bits.
void mla_apart(const SparseMla& p) {
  const int64_t most_heads = p.units[0].heads;
  const int64_t state_size = MlaState::size(most_heads, p.value_dim);
  const std::unique_ptr<float[]> states(new float[p.num_parts * state_size]);
  auto state = [&](const MlaUnit& u, int64_t s) {
    return MlaState{states.get() + (u.part_first + s) * state_size, u.heads, p.value_dim};
  };
  parallel_for(p.num_parts, p.num_threads, [&](int64_t part) {
    auto begins_after = [](int64_t i, const MlaUnit& unit) { return i < unit.part_first; };
    const MlaUnit& u = std::upper_bound(p.units, p.units + p.num_units, part, begins_after)[-1];
    auto* buffer = static_cast<float*>(scratch(MlaWork::size(p, u.heads) * sizeof(float)));
    const MlaWork work(p, u, buffer);
    work.pack_queries();
    work.attend(part - u.part_first, state(u, part - u.part_first));
  });
  parallel_for(p.num_units, p.num_threads, [&](int64_t i) {
    const MlaUnit& u = p.units[i];
    auto* buffer =
        static_cast<float*>(scratch((state_size + MlaWork::size(p, u.heads)) * sizeof(float)));
    const MlaState none{buffer, u.heads, p.value_dim};
    if (u.num_segments == 0) none.clear();
    const MlaState all = u.num_segments == 0 ? none : state(u, 0);
    for (int64_t s = 1; s < u.num_segments; ++s) all.merge(state(u, s));
    MlaWork(p, u, buffer + state_size).finish(all);
  });
}

void sparse_mla(const SparseMla& p) {
  if (p.num_parts > 0) return mla_apart(p);
  parallel_for(p.num_units, p.num_threads, [&](int64_t i) { mla_whole_unit(p, p.units[i]); });
}
