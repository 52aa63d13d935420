// SwiGLU and per-group FP8 quantisation of rows, together or apart.

inline float swiglu_part(float* dst, const SwiGlu& in, int64_t cols, int64_t row, int64_t col,
                         int64_t count) {
  const char *gates = at(in.x, row, col), *ups = at(in.x, row, cols + col);
  return with_wide_type(
      in.x.type, [&](auto type) { return swiglu_floats<type()>(dst, gates, ups, count, in); });
}

void silu_and_mul(const SiluAndMul& p) {
  constexpr int64_t kPart = 1024;
  const int64_t parts = ceil_div(p.cols, kPart);
  const int64_t bytes = 2 * std::min(kPart, p.cols) * size_of(p.in.x.type);
  for_row_runs(p.rows * parts, bytes, p.num_threads, [&](int64_t first, int64_t last) {
    alignas(64) float product[kPart];
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i / parts, col = i % parts * kPart;
      const int64_t count = std::min(kPart, p.cols - col);
      swiglu_part(product, p.in, p.cols, row, col, count);
      store_row(at(p.out, row, col), p.out.type, product, count);
    }
  });
}

inline void quantise_group(const Quantise& p, float* x, int64_t row, int64_t group) {
  const int64_t col = group * p.group, count = std::min(p.group, p.cols - col);
  float amax;
  if (p.gated) {
    amax = swiglu_part(x, p.in, p.cols, row, col, count);
  } else {
    const char* src = at(p.in.x, row, col);
    amax =
        with_wide_type(p.in.x.type, [&](auto type) { return plain_floats<type()>(x, src, count); });
  }
  const float scale = group_scale(amax, 1e-10f, p.q.type, p.power_of_two);
  p.scale[row * p.scale_row_stride + group * p.scale_col_stride] = scale;
  auto* q = reinterpret_cast<uint8_t*>(at(p.q, row, col));
  if (p.q.type == DType::kE4M3) {
    store_codes<DType::kE4M3>(q, x, count, scale);
  } else {
    store_codes<DType::kE5M2>(q, x, count, scale);
  }
}

void quantise(const Quantise& p) {
  const int64_t width = std::min(p.group, p.cols), groups = ceil_div(p.cols, p.group);
  const int64_t bytes = p.cols * size_of(p.in.x.type) * (p.gated ? 2 : 1);
  for_row_runs(p.rows, bytes, p.num_threads, [&](int64_t first, int64_t last) {
    float* x = static_cast<float*>(scratch(whole_steps(width) * sizeof(float)));
    for (int64_t row = first; row < last; ++row) {
      for (int64_t g = 0; g < groups; ++g) quantise_group(p, x, row, g);
    }
  });
}
