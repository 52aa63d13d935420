// Prefix sums over a warp and over a block.
#pragma once

#include "gpu/units.cuh"

namespace mate::gpu {

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Larger {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

// Result over the lanes up to this one.
template <typename T, typename Op>
__device__ inline T scan_warp(T v, Op op) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const T before = __shfl_up_sync(kAllLanes, v, step);
    if (lane >= step) v = op(before, v);
  }
  return v;
}

// What the threads before this one and all together come to; numbers are not negative.
template <typename T>
struct Prefix {
  T before, all;
};

// Blocks of whole warps. `room` is shared memory that no thread may still be reading.
template <typename T, typename Op>
__device__ inline Prefix<T> scan_block(T v, T (&room)[kWarp], Op op) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int num_warps = blockDim.x / kWarp;
  const T upto = scan_warp(v, op);
  if (lane == kWarp - 1) room[warp] = upto;
  __syncthreads();
  const T warps = scan_warp(lane < num_warps ? room[lane] : T(0), op);
  const T earlier_warps = __shfl_sync(kAllLanes, warps, (warp + kWarp - 1) % kWarp);
  const T earlier_lanes = __shfl_up_sync(kAllLanes, upto, 1);
  T before = warp > 0 ? earlier_warps : T(0);
  if (lane > 0) before = op(before, earlier_lanes);
  return {before, __shfl_sync(kAllLanes, warps, kWarp - 1)};
}

}  // namespace mate::gpu
