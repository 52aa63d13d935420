// From float32 sums to the output, in the order of cpu/epilogue.inl: addend, divisor, scale of the
// output, rounding.
#pragma once

#include "gpu/gemm.h"
#include "gpu/portable/elements.cuh"
#include "gpu/units.cuh"

namespace mate::gpu::portable {

// Columns that a lane finishes: a warp's make a block of the scales of the output.
constexpr int kLaneCols = 4;

template <DType type>
__device__ inline void store_columns(void* data, int64_t at, const float (&v)[kLaneCols],
                                     int count) {
  char* to = static_cast<char*>(data) + at * size_of(type);
  if (count == kLaneCols && reinterpret_cast<uintptr_t>(to) % (kLaneCols * size_of(type)) == 0) {
    return store_vector<type>(to, v);
  }
#pragma unroll
  for (int i = 0; i < kLaneCols; ++i) {
    if (i < count) store<type>(data, at + i, v[i]);
  }
}

// Columns [col, col + count) of one row; all lanes of a warp take part, count is 0 past the end.
__device__ inline void finish_columns(const Output& o, int64_t group, int64_t row, int64_t col,
                                      int count, float (&v)[kLaneCols]) {
  if (o.c.data != nullptr) {
    const int64_t base = group * o.c.group_stride + row * o.c.row_stride;
#pragma unroll
    for (int i = 0; i < kLaneCols; ++i) {
      if (i < count) v[i] += load_any(o.c.type, o.c.data, base + (col + i) * o.c.k_stride);
    }
  }
  if (o.divisor != nullptr) {
    const float divisor = *o.divisor;
#pragma unroll
    for (int i = 0; i < kLaneCols; ++i) v[i] = v[i] / divisor;
  }
  if (o.scale != nullptr) {
    // As integers, magnitudes have the same order, and NaN is above all.
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kLaneCols; ++i) {
      if (i < count) most = max(most, __float_as_uint(v[i]) & 0x7fffffffu);
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      most = max(most, __shfl_xor_sync(kAllLanes, most, step));
    }
    const float scale = __uint_as_float(most) / 448.0f;
    if (threadIdx.x % kWarp == 0) o.scale[row * o.scale_stride + col / 128] = scale;
#pragma unroll
    for (int i = 0; i < kLaneCols; ++i) v[i] = scale == 0 ? 0 : v[i] / scale;
  }
  if (count <= 0) return;
  const int64_t at = group * o.group_stride + row * o.row_stride + col;
  if (o.accumulate) {
    auto* out = static_cast<float*>(o.data) + at;
#pragma unroll
    for (int i = 0; i < kLaneCols; ++i) {
      if (i < count) out[i] += v[i];
    }
    return;
  }
  switch (o.type) {
    case DType::kE4M3:
      return store_columns<DType::kE4M3>(o.data, at, v, count);
    case DType::kE5M2:
      return store_columns<DType::kE5M2>(o.data, at, v, count);
    case DType::kBF16:
      return store_columns<DType::kBF16>(o.data, at, v, count);
    case DType::kF16:
      return store_columns<DType::kF16>(o.data, at, v, count);
    default:
      return store_columns<DType::kF32>(o.data, at, v, count);
  }
}

}  // namespace mate::gpu::portable
