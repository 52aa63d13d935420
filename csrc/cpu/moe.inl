// Rows of tokens to rows sorted by expert and back.

// Columns handled at a time, so that few rows still feed several threads.
constexpr int64_t kPermuteCols = 1024;

template <DType type>
inline void scaled_floats(float* dst, const char* src, float weight, int64_t count) {
  for (int64_t c = 0; c < count; c += 16) {
    Step v;
    load_step<type>(v, src + c * size_of(type), count - c);
    for (int i = 0; i < kVecs; ++i) store(dst + c + i * kLanes, mul(v[i], set1(weight)));
  }
}

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
      const char* src = at(p.hidden, token, col);
      char* dst = at(p.rows, row, col);
      if (p.weights.data == nullptr) {
        std::memcpy(dst, src, count * size);
        continue;
      }
      const float weight = slot_weight(p.weights, token, slot % p.topk);
      with_wide_type(p.hidden.type,
                     [&](auto type) { scaled_floats<type()>(values, src, weight, count); });
      store_row(dst, p.hidden.type, values, count);
    }
  });
}

void unpermute(const Unpermute& p) {
  const int64_t parts = ceil_div(p.cols, kPermuteCols);
  const int64_t bytes = std::min(kPermuteCols, p.cols) * size_of(p.rows.type) * p.topk;
  for_row_runs(p.num_tokens * parts, bytes, p.num_threads, [&](int64_t first, int64_t last) {
    alignas(64) float sums[kPermuteCols];
    auto* addends = static_cast<Addend*>(scratch(p.topk * sizeof(Addend)));
    for (int64_t i = first; i < last; ++i) {
      const int64_t token = i / parts, col = i % parts * kPermuteCols;
      const int64_t count = std::min(kPermuteCols, p.cols - col);
      int64_t num_addends = 0;
      for (int64_t j = 0; j < p.topk; ++j) {
        const int64_t row = p.row_of[token * p.topk + j];
        if (row < 0) continue;
        addends[num_addends++] = {at(p.rows, row, 0), slot_weight(p.weights, token, j)};
      }
      with_wide_type(p.rows.type, [&](auto type) {
        weighted_sum<type()>(sums, addends, num_addends, col, count);
      });
      store_row(at(p.out, token, col), p.out.type, sums, count);
    }
  });
}
