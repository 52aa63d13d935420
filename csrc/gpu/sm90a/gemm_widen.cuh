// FP8 weights beside 16-bit rows: codes are widened in shared memory, where 16 bits hold them
// exactly, while the products of the step before run.
#pragma once

#include "gpu/convert.cuh"
#include "gpu/sm90a/gemm_multiply.cuh"

namespace mate::gpu::sm90a {

// Columns of a step: 64 codes each, as they come in the upper half of their room.
constexpr int kCodes = 64;

template <DType type, DType code_type>
__device__ __forceinline__ uint32_t widen_pair(uint32_t codes) {
  const float2 v = decode_fp8_pair<code_type>(static_cast<uint16_t>(codes));
  return pack_pair<type>(v.x, v.y);
}

// All multiplying threads: B of a stage to 16 bits, in the order that the copy engine gives to
// 16-bit operands.
template <typename Shape, DType type, DType code_type>
__device__ __forceinline__ void widen_columns(uint32_t b) {
  constexpr int kThreads = Shape::kWarpgroups * 128, kParts = Shape::kCols * kCodes / 16 / kThreads;
  static_assert(Shape::kCols * kCodes % (16 * kThreads) == 0, "16 codes at a time");
  uint32_t codes[kParts][4];
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const uint32_t from = b + Shape::kBBytes / 2 + (i * kThreads + threadIdx.x) * 16;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(codes[i][0]), "=r"(codes[i][1]), "=r"(codes[i][2]), "=r"(codes[i][3])
                 : "r"(from)
                 : "memory");
  }
  sync_threads(2, kThreads);
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const uint32_t at = i * kThreads + threadIdx.x, col = at / 4, part = at % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t to = b + col * kStepBytes + ((part * 2 + half) ^ col % 8) * 16;
      const uint32_t* words = codes[i] + half * 2;
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to),
                   "r"(widen_pair<type, code_type>(words[0])),
                   "r"(widen_pair<type, code_type>(words[0] >> 16)),
                   "r"(widen_pair<type, code_type>(words[1])),
                   "r"(widen_pair<type, code_type>(words[1] >> 16))
                   : "memory");
    }
  }
  fence_shared();
  sync_threads(2, kThreads);
}

// All steps along k of a tile, also of one in which the warpgroup has no rows (active is 0). Sums
// take scales by 128 columns after every 128 of k, which is two steps.
template <int active, DType type, DType code_type, typename Shape>
__device__ __forceinline__ void multiply_widened(const GemmArgs& p, const Tile& tile, int col,
                                                 Multiplier<Shape>& at, uint32_t base,
                                                 float (&sums)[Shape::kWgCols / 2]) {
  const Scales& b = p.b_scale;
  const bool by_blocks = b.data != nullptr && b.k_block < p.k;
  const float* scales = by_blocks ? b.data + tile.group * b.group_stride +
                                        min(col, p.n - 1) / b.row_block * b.row_stride
                                  : &kOne;
  const int64_t stride = by_blocks ? b.k_stride : 0;
  const uint32_t first = base + Shape::kABytes;
  auto widen = [&] {
    at.wait_full();
    widen_columns<Shape, type, code_type>(first + at.stage() * Shape::kStageBytes);
  };
  float part[Shape::kWgCols / 2], next = *scales;
  widen();
#pragma unroll 1
  for (int k = 0; k < p.k_blocks; ++k) {
    if constexpr (active > 0) at.template start<type, type>(0, part, k % 2 != 0);
    at.next_stage();
    const int stage = at.used();
    if (k + 1 < p.k_blocks) widen();
    wait_products<0>();
    fence_sums(part);
    at.release(stage);
    if (k % 2 == 0 && k + 1 < p.k_blocks) continue;
    const float scale = next;
    if (k + 1 < p.k_blocks) next = scales[(k / 2 + 1) * stride];
    if constexpr (active > 0) {
#pragma unroll
      for (int i = 0; i < Shape::kWgCols / 2; ++i) sums[i] = fmaf(scale, part[i], sums[i]);
    }
  }
  if constexpr (active > 0) {
    if (!by_blocks) scale_sums(p, tile, at.thread_row(0), col, at.lane, sums);
  }
}

}  // namespace mate::gpu::sm90a
