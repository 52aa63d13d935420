// What an output may want beside the product: an addend, a divisor, scales of its own, FP8 codes,
// or to be added to. In the order of cpu/epilogue.inl.
#pragma once

#include "gpu/convert.cuh"
#include "gpu/sm90a/gemm_epilogue.cuh"

namespace mate::gpu::sm90a {

// Calls f(i, row, column) for each sum i of a lane that is there, row and column of the tile of a
// warp.
template <int count, typename F>
__device__ __forceinline__ void each_sum(const OutTile<count>& t, int lane, const F& f) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    // Few loads at a time: the sums leave few registers.
    if (i % 16 == 0) asm volatile("" ::: "memory");
    const int r = lane / 4 + i % 4 / 2 * 8, c = i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (r < t.rows && t.col + c < t.p.n) f(i, r, c);
  }
}

template <DType type, int count>
__device__ __forceinline__ void add_addend(const Operand& c, const OutTile<count>& t, int lane,
                                           float (&sums)[count]) {
  const int64_t first = t.group * c.group_stride + (t.row + lane / 4) * c.row_stride + t.col;
  const char* rows[2];
  for (int r = 0; r < 2; ++r) {
    rows[r] = static_cast<const char*>(c.data) +
              (first + lane % 4 * 2 + 8 * r * c.row_stride) * kSize<type>;
  }
  each_sum(t, lane,
           [&](int i, int, int) { sums[i] += load<type>(rows[i % 4 / 2], i / 4 * 8 + i % 2); });
}

// Divides by multiplying: a division takes tens of instructions and registers.
struct Inverse {
  float lift, inverse;

  // The inverse of a divisor this small would not be a float.
  __device__ explicit Inverse(float divisor)
      : lift(fabsf(divisor) < 0x1p-100f ? 0x1p100f : 1.0f), inverse(1.0f / (divisor * lift)) {}
  __device__ float times(float x) const { return x * lift * inverse; }
};

// Divides each row by amax / 448 of its 128 columns and writes that.
template <int count>
__device__ __forceinline__ void scale_rows(const Output& o, const OutTile<count>& t, int lane,
                                           float (&sums)[count]) {
  static_assert(count == 64, "the columns of a warp share a scale");
  // As integers, magnitudes have the same order, and NaN is above all.
  uint32_t most[2] = {0, 0};
  each_sum(t, lane, [&](int i, int, int) {
    uint32_t& of_row = most[i % 4 / 2];
    of_row = max(of_row, __float_as_uint(sums[i]) & 0x7fffffffu);
  });
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    most[r] = max(most[r], __shfl_xor_sync(~0u, most[r], 1));
    most[r] = max(most[r], __shfl_xor_sync(~0u, most[r], 2));
    const float scale = __uint_as_float(most[r]) / 448.0f;
    const int row = lane / 4 + 8 * r;
    if (lane % 4 == 0 && row < t.rows) {
      o.scale[(t.row + row) * o.scale_stride + t.col / 128] = scale;
    }
    const Inverse inverse(scale);
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (i % 4 / 2 == r) sums[i] = scale == 0 ? 0 : inverse.times(sums[i]);
    }
  }
}

__device__ __forceinline__ void add_pair(float* to, float x, float y) {
  asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(x), "f"(y)
               : "memory");
}

// The second-level cache adds: no other tile has the same elements.
template <int count>
__device__ __forceinline__ void add_to_output(const OutTile<count>& t, int lane,
                                              const float (&sums)[count]) {
  const int64_t stride = t.p.out.row_stride;
  auto* data = reinterpret_cast<float*>(t.data());
  const bool pairs = stride % 2 == 0 && reinterpret_cast<uintptr_t>(data) % 8 == 0;
  const bool whole = pairs && t.rows >= 16 && t.col + count * 2 <= t.p.n;
  float* rows[2];
  for (int r = 0; r < 2; ++r) {
    rows[r] = data + (t.row + lane / 4 + r * 8) * stride + t.col + lane % 4 * 2;
  }
  if (whole) {
#pragma unroll
    for (int i = 0; i < count; i += 2) {
      add_pair(rows[i % 4 / 2] + i / 4 * 8, sums[i], sums[i + 1]);
    }
    return;
  }
  each_sum(t, lane,
           [&](int i, int, int) { atomicAdd(rows[i % 4 / 2] + i / 4 * 8 + i % 2, sums[i]); });
}

// 16 rows of 128 columns as e4m3, to an OutStage.
template <int count>
__device__ __forceinline__ void stage_codes(const float (&sums)[count], uint32_t base, int lane) {
  static_assert(count == 64, "rows of 128 bytes");
  const uint32_t first = OutStage{base}.part(lane / 4, 0) + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < count; i += 2) {
    const uint32_t to = (first ^ i / 4 * 8) + i % 4 / 2 * 8 * 128;  // two columns of row (+ 8)
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to),
                 "h"(encode_fp8_pair<DType::kE4M3>(sums[i], sums[i + 1]))
                 : "memory");
  }
}

// All lanes have staged their part.
template <int count>
__device__ __forceinline__ void store_codes(const OutTile<count>& t, uint32_t base, int lane) {
  const OutStage stage{base};
  const int64_t stride = t.p.out.row_stride;
  char* data = t.data();
  const bool aligned = stride % 16 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = i * 4 + lane / 8, col = t.col + lane % 8 * 16;
    if (row >= t.rows || col >= t.p.n) continue;
    const uint4 v = stage.get(row, lane % 8);
    char* to = data + (t.row + row) * stride + col;
    if (aligned && col + 16 <= t.p.n) {
      *reinterpret_cast<uint4*>(to) = v;
      continue;
    }
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int b = 0; b < 16; ++b) {
      if (col + b < t.p.n) to[b] = static_cast<char>(words[b / 4] >> b % 4 * 8);
    }
  }
}

// An OutTile of an output of any kind. Codes pass through the stages but are written by the warp;
// what is added to, and float32, is written at once. Nothing that depends on the lane is kept from
// tile to tile: the sums need the registers.
template <int count>
struct FinishedTile : OutTile<count> {
  __device__ __forceinline__ void stage(float (&sums)[count], uint32_t stages, int lane) const {
    if (this->rows <= 0) return;
    lane = kept(lane);
    const Output& o = this->p.out;
    if (o.accumulate) return add_to_output(*this, lane, sums);
    if (o.c.data != nullptr) {
      if (o.c.type == DType::kBF16) {
        add_addend<DType::kBF16>(o.c, *this, lane, sums);
      } else if (o.c.type == DType::kF16) {
        add_addend<DType::kF16>(o.c, *this, lane, sums);
      } else {
        add_addend<DType::kF32>(o.c, *this, lane, sums);
      }
    }
    if (o.divisor != nullptr) {
      const Inverse inverse(*o.divisor);
#pragma unroll
      for (float& sum : sums) sum = inverse.times(sum);
    }
    if (o.scale != nullptr) scale_rows(o, *this, lane, sums);
    if (o.type == DType::kE4M3) return stage_codes(sums, stages, lane);
    OutTile<count>::stage(sums, stages, lane);
  }

  __device__ __forceinline__ void store(uint32_t stages, int lane) const {
    if (this->rows <= 0) return;
    lane = kept(lane);
    if (this->p.out.type == DType::kE4M3) return store_codes(*this, stages, lane);
    OutTile<count>::store(stages, lane);
  }
};

}  // namespace mate::gpu::sm90a
