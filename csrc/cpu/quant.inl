// SwiGLU and per-group FP8 quantisation of rows, together or apart.

// Work is handed out in runs of rows of at least this many bytes.
constexpr int64_t kRunBytes = 32768;

// body(first, last) over runs of rows.
template <typename Body>
void for_row_runs(int64_t rows, int64_t bytes_per_row, int threads, const Body& body) {
  const int64_t run = std::max<int64_t>(1, kRunBytes / std::max<int64_t>(1, bytes_per_row));
  parallel_for(ceil_div(rows, run), threads,
               [&](int64_t i) { body(i * run, std::min(rows, (i + 1) * run)); });
}

inline const char* row_of(const Matrix& x, int64_t row, int64_t col) {
  return static_cast<const char*>(x.data) + (row * x.row_stride + col) * size_of(x.type);
}

inline int64_t whole_steps(int64_t count) { return ceil_div(count, 16) * 16; }

// dst is filled up to a multiple of 16.
inline void to_floats(float* dst, const Matrix& x, int64_t row, int64_t col, int64_t count) {
  static constexpr Operand kContiguous{nullptr, DType::kF32, 0, 0, 1};
  with_type(x.type, [&](auto type) {
    put_row<type()>(dst, kContiguous, row_of(x, row, col), count, 1.0f);
  });
}

// x * sigmoid(x); the exponent is never positive, so that nothing overflows.
inline Vec silu(Vec x) {
  Vec e = exponential(mul(set1(-1.0f), absolute(x)));
  return div(mul(x, where_negative(x, e, set1(1.0f))), add(set1(1.0f), e));
}

inline void round_floats(float* x, DType type, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (type == DType::kBF16) x[i] = decode_bf16(encode_bf16(x[i]));
    if (type == DType::kF16) x[i] = decode_f16(encode_f16(x[i]));
  }
}

// Columns [col, col + count) of the product; both buffers hold whole steps of 16.
inline void swiglu_row(float* dst, float* up, const SwiGlu& in, int64_t cols, int64_t row,
                       int64_t col, int64_t count) {
  to_floats(dst, in.x, row, col, count);
  to_floats(up, in.x, row, cols + col, count);
  const Vec most = set1(in.limit), least = set1(-in.limit);
  for (int64_t i = 0; i < whole_steps(count); i += kLanes) {
    Vec gate = minimum(most, load(dst + i));
    Vec factor = minimum(most, maximum(least, load(up + i)));
    store(dst + i, mul(silu(gate), factor));
  }
  if (in.rounded) round_floats(dst, in.x.type, count);
}

void silu_and_mul(const SiluAndMul& p) {
  constexpr int64_t kPart = 1024;
  const int64_t parts = ceil_div(p.cols, kPart);
  for_row_runs(p.rows * parts, 2 * kPart * size_of(p.in.x.type), p.num_threads,
               [&](int64_t first, int64_t last) {
                 alignas(64) float product[kPart], up[kPart];
                 for (int64_t i = first; i < last; ++i) {
                   const int64_t row = i / parts, col = i % parts * kPart;
                   const int64_t count = std::min(kPart, p.cols - col);
                   swiglu_row(product, up, p.in, p.cols, row, col, count);
                   store_row(const_cast<char*>(row_of(p.out, row, col)), p.out.type, product,
                             count);
                 }
               });
}

inline float group_scale(float amax, DType type, bool power_of_two) {
  if (!(amax >= 1e-10f) && amax == amax) amax = 1e-10f;
  float scale = amax / (type == DType::kE4M3 ? 448.0f : 57344.0f);
  if (!power_of_two) return scale;
  uint32_t bits = float_to_bits(scale);
  if (bits >= 0x7f800000) return scale;
  return bits_to_float((bits + 0x007fffff) & 0xff800000);
}

// One group held as floats (whole steps of 16, zeros past its end) to codes; returns its scale.
template <DType type>
inline float quantise_group(uint8_t* q, const float* x, int64_t count, bool power_of_two) {
  Vec most[2] = {zero(), zero()};
  const int64_t steps = whole_steps(count);
  for (int64_t i = 0; i < steps; i += 2 * kLanes) {
    most[0] = larger_magnitude(most[0], load(x + i));
    most[1] = larger_magnitude(most[1], load(x + i + kLanes));
  }
  const float amax = largest_magnitude(larger_magnitude(most[0], most[1]));
  const float scale = group_scale(amax, type, power_of_two);
  if (scale != scale) {
    std::memset(q, 0x7f, count);
    return NAN;
  }
  const Vec divisor = set1(scale);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_fp8<type>(q + i, div(load(x + i), divisor));
  if (i < count) {
    uint8_t rest[kLanes];
    store_fp8<type>(rest, div(load(x + i), divisor));
    std::memcpy(q + i, rest, count - i);
  }
  return scale;
}

void quantise(const Quantise& p) {
  const int64_t width = std::min(p.group, p.cols), groups = ceil_div(p.cols, p.group);
  const int64_t bytes = p.cols * size_of(p.in.x.type) * (p.gated ? 2 : 1);
  for_row_runs(p.rows, bytes, p.num_threads, [&](int64_t first, int64_t last) {
    float* x = static_cast<float*>(scratch(2 * whole_steps(width) * sizeof(float)));
    float* up = x + whole_steps(width);
    for (int64_t row = first; row < last; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t col = g * p.group, count = std::min(p.group, p.cols - col);
        if (p.gated) {
          swiglu_row(x, up, p.in, p.cols, row, col, count);
        } else {
          to_floats(x, p.in.x, row, col, count);
        }
        auto* q = reinterpret_cast<uint8_t*>(const_cast<char*>(row_of(p.q, row, col)));
        p.scale[row * p.scale_row_stride + g * p.scale_col_stride] =
            p.q.type == DType::kE4M3 ? quantise_group<DType::kE4M3>(q, x, count, p.power_of_two)
                                     : quantise_group<DType::kE5M2>(q, x, count, p.power_of_two);
      }
    }
  });
}
