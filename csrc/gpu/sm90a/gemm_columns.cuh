// Products where each column of B has a scale of its own in every block of 128 of k.
#pragma once

#include "gpu/sm90a/gemm_multiply.cuh"

namespace mate::gpu::sm90a {

// begin() is called beside the first products.
template <DType a_type, DType b_type, typename Shape, typename Begin>
__device__ __forceinline__ void multiply_columns(int k_blocks, Multiplier<Shape>& at,
                                                 float (&sums)[Shape::kWgCols / 2], Begin&& begin) {
  // Scales of columns pass by: few are held at a time, the first ones read while products run.
  constexpr int kPairs = Shape::kWgCols / 8, kHeld = 4;
#pragma unroll 1
  for (int k = 0; k < k_blocks; ++k) {
    float part[Shape::kWgCols / 2];
    at.wait_full();
    at.template start<a_type, b_type>(0, part, false);
    if (k == 0) begin();
    if (k % kScaleSteps == 0) at.enter_slot();
    const float top = at.row_scale(0), bottom = at.row_scale(8);
    float2 of_cols[kHeld];
#pragma unroll
    for (int j = 0; j < kHeld; ++j) of_cols[j] = at.col_scale_pair(j);
    at.next_stage();
    wait_products<0>();
    fence_sums(part);
    at.signal_empty();
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      float2& scales = of_cols[j % kHeld];
      float* sum = sums + j * 4;
      const float* product = part + j * 4;
      sum[0] = fmaf(product[0], top * scales.x, sum[0]);
      sum[1] = fmaf(product[1], top * scales.y, sum[1]);
      sum[2] = fmaf(product[2], bottom * scales.x, sum[2]);
      sum[3] = fmaf(product[3], bottom * scales.y, sum[3]);
      if (j + kHeld < kPairs) scales = at.col_scale_pair(j + kHeld);
    }
    at.next_scales();
    if (k % kScaleSteps + 1 == kScaleSteps || k + 1 == k_blocks) {
      // The copy engine would overtake reads that are still on their way: its zeros for columns
      // past the last do not wait for memory.
      fence_shared();
      __syncwarp();
      at.leave_slot();
    }
  }
}

}  // namespace mate::gpu::sm90a
