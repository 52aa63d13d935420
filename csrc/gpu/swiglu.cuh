// Columns of rows, or of the SwiGLU product of their halves, as floats.
#pragma once

#include "gpu/columns.cuh"
#include "piece_params.h"

namespace mate::gpu {

// 1 / s for s from 1 to 2: a quadratic within 1% (Chebyshev) and two of Newton's steps, all of them
// multiply-adds, where a division checks ranges.
__device__ inline float inverse_of_sum(float s) {
  float y = fmaf(s, fmaf(s, 32.0f / 99, -144.0f / 99), 210.0f / 99);
  y = fmaf(fmaf(-s, y, 1.0f), y, y);
  return fmaf(fmaf(-s, y, 1.0f), y, y);
}

// x * sigmoid(x), within 3 units in the last place. The exponent is never positive, so that nothing
// overflows.
__device__ inline float silu(float x) {
  const float e = expf(-fabsf(x));
  return x * (x < 0 ? e : 1.0f) * inverse_of_sum(1.0f + e);
}

// Comparisons that let NaN pass.
__device__ inline float cut_above(float x, float most) { return x > most ? most : x; }
__device__ inline float cut_below(float x, float least) { return x < least ? least : x; }

// Rows to read. `up` is null where x itself is taken and not the SwiGLU product.
struct Source {
  const void *gate, *up;
  int64_t row_stride;
  float limit;
  bool rounded;

  Source(const SwiGlu& in, int64_t cols, bool gated, int64_t row, int64_t col)
      : gate(at(in.x, row, col)),
        up(gated ? at(in.x, row, cols + col) : nullptr),
        row_stride(in.x.row_stride),
        limit(in.limit),
        rounded(in.rounded) {}
  static const void* at(const Matrix& x, int64_t row, int64_t col) {
    return static_cast<const char*>(x.data) + (row * x.row_stride + col) * size_of(x.type);
  }
};

// n consecutive columns of x or of the SwiGLU product.
template <DType type, bool gated, int n>
struct Input {
  Columns<type, n> gate, up;

  __device__ void load(const Source& in, int64_t i) {
    gate.load(in.gate, i);
    if (gated) up.load(in.up, i);
  }
  __device__ void floats(const Source& in, float (&v)[n]) const {
    gate.floats(v);
    if constexpr (gated) {
      float ups[n];
      up.floats(ups);
      if (in.limit < __uint_as_float(0x7f800000)) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
          v[i] = cut_above(v[i], in.limit);
          ups[i] = cut_above(cut_below(ups[i], -in.limit), in.limit);
        }
      }
#pragma unroll
      for (int i = 0; i < n; ++i) v[i] = silu(v[i]) * ups[i];
      if (in.rounded) round_columns<type>(v);
    }
  }
};

}  // namespace mate::gpu
