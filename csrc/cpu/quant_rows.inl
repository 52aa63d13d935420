// SwiGLU and FP8 quantisation of a row, piece by piece.

constexpr int kVecs = 16 / kLanes;
using Step = Vec[kVecs];  // 16 columns

inline char* at(const Matrix& x, int64_t row, int64_t col) {
  return static_cast<char*>(x.data) + (row * x.row_stride + col) * size_of(x.type);
}

inline int64_t whole_steps(int64_t count) { return ceil_div(count, 16) * 16; }

// The first `left` of 16 columns at src, zeros for the others.
template <DType type>
inline void load_step(Step& v, const char* src, int64_t left) {
  alignas(64) char part[64];
  if (left < 16) {
    std::memset(part, 0, sizeof(part));
    std::memcpy(part, src, left * size_of(type));
    src = part;
  }
  decode16<type>(src, v);
}

template <DType type>
inline void round_step(Step& v) {
  if constexpr (type == DType::kBF16 || type == DType::kF16) {
    uint16_t codes[16];
    for (int i = 0; i < kVecs; ++i) {
      if constexpr (type == DType::kBF16) {
        store_bf16(codes + i * kLanes, v[i]);
      } else {
        store_f16(codes + i * kLanes, v[i]);
      }
    }
    decode16<type>(codes, v);
  }
}

// x * sigmoid(x); the exponent is never positive, so that nothing overflows.
inline Vec silu(Vec x) {
  Vec e = exponential(where_negative(x, x, mul(x, set1(-1.0f))));
  return div(mul(x, where_negative(x, e, set1(1.0f))), add(set1(1.0f), e));
}

// Columns as floats in dst (whole steps of 16, zeros past the end); returns the largest magnitude,
// NaN where there is one.
template <DType type>
inline float plain_floats(float* dst, const char* src, int64_t count) {
  Vec most = zero();
  for (int64_t c = 0; c < count; c += 16) {
    Step v;
    load_step<type>(v, src + c * size_of(type), count - c);
    for (int i = 0; i < kVecs; ++i) {
      most = larger(most, absolute(v[i]));
      store(dst + c + i * kLanes, v[i]);
    }
  }
  return largest(most);
}

template <DType type>
inline float swiglu_floats(float* dst, const char* gates, const char* ups, int64_t count,
                           const SwiGlu& in) {
  const Vec cut = set1(in.limit), low_cut = set1(-in.limit);
  Vec most = zero();
  for (int64_t c = 0; c < count; c += 16) {
    Step gate, up;
    load_step<type>(gate, gates + c * size_of(type), count - c);
    load_step<type>(up, ups + c * size_of(type), count - c);
    for (int i = 0; i < kVecs; ++i) {
      gate[i] = mul(silu(minimum(cut, gate[i])), minimum(cut, maximum(low_cut, up[i])));
    }
    if (in.rounded) round_step<type>(gate);
    for (int i = 0; i < kVecs; ++i) {
      most = larger(most, absolute(gate[i]));
      store(dst + c + i * kLanes, gate[i]);
    }
  }
  return largest(most);
}

// Calls f with the type of 16-bit or float32 input as a constant.
template <typename F>
inline auto with_wide_type(DType type, const F& f) {
  switch (type) {
    case DType::kBF16:
      return f(std::integral_constant<DType, DType::kBF16>());
    case DType::kF16:
      return f(std::integral_constant<DType, DType::kF16>());
    default:
      return f(std::integral_constant<DType, DType::kF32>());
  }
}

inline float group_scale(float amax, float least, DType type, bool power_of_two) {
  if (amax < least) amax = least;
  float scale = amax / (type == DType::kE4M3 ? 448.0f : 57344.0f);
  uint32_t bits = float_to_bits(scale);
  if (!power_of_two || bits >= 0x7f800000) return scale;
  return bits_to_float((bits + 0x007fffff) & 0xff800000);
}

// Codes of x / scale; x holds whole steps of 16. No quotient exceeds the largest code by more than
// rounding, unless the scale is not finite.
template <DType type>
inline void store_codes(uint8_t* q, const float* x, int64_t count, float scale) {
  if (scale != scale) {
    std::memset(q, 0x7f, count);
    return;
  }
  const Vec divisor = set1(scale);
  for (int64_t c = 0; c < count; c += 16) {
    Step v;
    for (int i = 0; i < kVecs; ++i) v[i] = div(load(x + c + i * kLanes), divisor);
    uint8_t part[16];
    uint8_t* codes = c + 16 <= count ? q + c : part;
    if (scale < INFINITY) {
      store16_in_range<type>(codes, v);
    } else {
      for (int i = 0; i < kVecs; ++i) store_fp8<type>(codes + i * kLanes, v[i]);
    }
    if (codes == part) std::memcpy(q + c, part, count - c);
  }
}
