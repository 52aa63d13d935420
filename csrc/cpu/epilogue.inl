// From float32 sums of one row to the output: column scales, addend, divisor, rounding.

// Sums of a unit: a row of them takes kLdc floats, as the last tile may reach past its end.
constexpr int64_t kLdc = kBlockN + 16;
// Between rows of 16-bit numbers that stand for an operand: whole segments of k, and not a power of
// two apart, which would let them share cache sets.
inline int64_t packed_ld(int64_t k) { return ceil_div(k, 128) * 128 + 32; }

inline void store_row(void* dst, DType type, const float* src, int64_t count) {
  int64_t n = 0;
  switch (type) {
    case DType::kBF16: {
      auto* out = static_cast<uint16_t*>(dst);
      for (; n + kLanes <= count; n += kLanes) store_bf16(out + n, load(src + n));
      for (; n < count; ++n) out[n] = encode_bf16(src[n]);
      return;
    }
    case DType::kF16: {
      auto* out = static_cast<uint16_t*>(dst);
      for (; n + kLanes <= count; n += kLanes) store_f16(out + n, load(src + n));
      for (; n < count; ++n) out[n] = encode_f16(src[n]);
      return;
    }
    case DType::kF32:
      std::memcpy(dst, src, count * sizeof(float));
      return;
    case DType::kE4M3: {
      auto* out = static_cast<uint8_t*>(dst);
      for (; n + kLanes <= count; n += kLanes) store_fp8<DType::kE4M3>(out + n, load(src + n));
      for (; n < count; ++n) out[n] = encode_e4m3(src[n]);
      return;
    }
    case DType::kE5M2: {
      auto* out = static_cast<uint8_t*>(dst);
      for (; n + kLanes <= count; n += kLanes) store_fp8<DType::kE5M2>(out + n, load(src + n));
      for (; n < count; ++n) out[n] = encode_e5m2(src[n]);
      return;
    }
  }
}

// Largest magnitude over 448, or NaN where the row has one.
inline float amax_scale(const float* row, int64_t count) {
  float amax = 0;
  for (int64_t n = 0; n < count; ++n) {
    float x = std::fabs(row[n]);
    amax = x > amax || x != x ? x : amax;
    if (x != x) break;
  }
  return amax / 448.0f;
}

// Finishes one row of a unit; `row` is the row of the output, `sums` is changed.
inline void finish_row(const GroupedGemm& p, const Group& g, int64_t row, int64_t col,
                       int64_t count, float* sums) {
  const Output& o = p.out;
  if (o.c.data != nullptr) {
    const char* src = element(o.c, g.a_group, row, col);
    float addend[kBlockN];
    with_type(o.c.type, [&](auto type) { put_row<type()>(addend, o.c, src, count, 1.0f); });
    for (int64_t n = 0; n < count; ++n) sums[n] += addend[n];
  }
  if (o.divisor != nullptr) {
    for (int64_t n = 0; n < count; ++n) sums[n] /= *o.divisor;
  }
  if (o.scale != nullptr) {
    float scale = amax_scale(sums, count);
    o.scale[row * o.scale_stride + col / kBlockN] = scale;
    for (int64_t n = 0; n < count; ++n) sums[n] = scale == 0 ? 0 : sums[n] / scale;
  }
  char* dst = static_cast<char*>(o.data) +
              (g.a_group * o.group_stride + row * o.row_stride + col) * size_of(o.type);
  if (o.accumulate) {
    auto* out = reinterpret_cast<float*>(dst);
    for (int64_t n = 0; n < count; ++n) out[n] += sums[n];
  } else {
    store_row(dst, o.type, sums, count);
  }
}

// Tells who waits that the row blocks of a unit are one block of columns further.
inline void finish_unit(const GroupedGemm& p, const Unit& u) {
  if (p.signal.data == nullptr) return;
  int32_t* blocks = p.signal.data + u.group->a_group * p.signal.per_group;
  for (int64_t row = u.row_first; row < u.row_first + u.rows; row += kBlockM) {
    __atomic_fetch_add(blocks + row / kBlockM, 1, __ATOMIC_RELEASE);
  }
}
