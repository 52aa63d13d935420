// Weights of slots and weighted sums of rows.

inline float slot_weight(const SlotWeights& w, int64_t token, int64_t j) {
  if (w.data == nullptr) return 1.0f;
  const char* src = static_cast<const char*>(w.data) +
                    (token * w.row_stride + j * w.col_stride) * size_of(w.type);
  if (w.type == DType::kF32) {
    float weight;
    std::memcpy(&weight, src, sizeof(weight));
    return weight;
  }
  uint16_t code;
  std::memcpy(&code, src, sizeof(code));
  return w.type == DType::kBF16 ? decode_bf16(code) : decode_f16(code);
}

struct Addend {
  const char* row;
  float weight;
};

// dst holds whole steps of 16.
template <DType type>
inline void weighted_sum(float* dst, const Addend* addends, int64_t num_addends, int64_t col,
                         int64_t count) {
  for (int64_t c = 0; c < count; c += 16) {
    Step sums;
    for (Vec& sum : sums) sum = zero();
    for (int64_t j = 0; j < num_addends; ++j) {
      Step v;
      load_step<type>(v, addends[j].row + (col + c) * size_of(type), count - c);
      const Vec weight = set1(addends[j].weight);
      for (int i = 0; i < kVecs; ++i) sums[i] = fma(v[i], weight, sums[i]);
    }
    for (int i = 0; i < kVecs; ++i) store(dst + c + i * kLanes, sums[i]);
  }
}
