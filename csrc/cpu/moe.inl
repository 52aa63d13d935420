// Rows of tokens to rows sorted by expert and back.

inline float slot_weight(const SlotWeights& w, int64_t token, int64_t j) {
  if (w.data == nullptr) return 1.0f;
  const char* at = static_cast<const char*>(w.data) +
                   (token * w.row_stride + j * w.col_stride) * size_of(w.type);
  if (w.type == DType::kF32) {
    float weight;
    std::memcpy(&weight, at, sizeof(weight));
    return weight;
  }
  uint16_t code;
  std::memcpy(&code, at, sizeof(code));
  return w.type == DType::kBF16 ? decode_bf16(code) : decode_f16(code);
}

// Columns handled at a time, so that few rows still feed several threads.
constexpr int64_t kPermuteCols = 1024;

void permute(const Permute& p) {
  const int64_t parts = ceil_div(p.cols, kPermuteCols), size = size_of(p.hidden.type);
  const int64_t bytes = std::min(kPermuteCols, p.cols) * size;
  for_row_runs(p.num_rows * parts, bytes, p.num_threads, [&](int64_t first, int64_t last) {
    alignas(64) float values[kPermuteCols];
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i / parts, col = i % parts * kPermuteCols;
      const int64_t count = std::min(kPermuteCols, p.cols - col);
      const int64_t slot = p.slot_of[row * p.slot_stride];
      if (slot < 0 || slot >= p.num_slots) continue;
      const int64_t token = slot / p.topk;
      char* dst = const_cast<char*>(row_of(p.rows, row, col));
      if (p.weights.data == nullptr) {
        std::memcpy(dst, row_of(p.hidden, token, col), count * size);
        continue;
      }
      const Vec weight = set1(slot_weight(p.weights, token, slot % p.topk));
      to_floats(values, p.hidden, token, col, count);
      for (int64_t c = 0; c < whole_steps(count); c += kLanes) {
        store(values + c, mul(load(values + c), weight));
      }
      store_row(dst, p.hidden.type, values, count);
    }
  });
}

// sums[c] += weight * row[c]; sums holds whole steps of 16.
template <DType type>
inline void add_weighted(float* sums, const char* row, float weight, int64_t count) {
  const Vec factor = set1(weight);
  for (int64_t c = 0; c < count; c += 16) {
    alignas(64) char part[64] = {};
    const char* src = row + c * size_of(type);
    if (c + 16 > count) {
      std::memcpy(part, src, (count - c) * size_of(type));
      src = part;
    }
    Vec v[16 / kLanes];
    decode16<type>(src, v);
    for (int i = 0; i < 16 / kLanes; ++i) {
      float* at = sums + c + i * kLanes;
      store(at, fma(v[i], factor, load(at)));
    }
  }
}

void unpermute(const Unpermute& p) {
  const int64_t parts = ceil_div(p.cols, kPermuteCols);
  const int64_t bytes = std::min(kPermuteCols, p.cols) * size_of(p.rows.type) * p.topk;
  for_row_runs(p.num_tokens * parts, bytes, p.num_threads, [&](int64_t first, int64_t last) {
    alignas(64) float sums[kPermuteCols];
    for (int64_t i = first; i < last; ++i) {
      const int64_t token = i / parts, col = i % parts * kPermuteCols;
      const int64_t count = std::min(kPermuteCols, p.cols - col);
      for (int64_t c = 0; c < whole_steps(count); c += kLanes) store(sums + c, zero());
      for (int64_t j = 0; j < p.topk; ++j) {
        const int64_t row = p.row_of[token * p.topk + j];
        if (row < 0) continue;
        const float weight = slot_weight(p.weights, token, j);
        with_type(p.rows.type, [&](auto type) {
          add_weighted<type()>(sums, row_of(p.rows, row, col), weight, count);
        });
      }
      store_row(const_cast<char*>(row_of(p.out, token, col)), p.out.type, sums, count);
    }
  });
}
