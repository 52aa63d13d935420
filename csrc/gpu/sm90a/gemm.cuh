// The grouped product on Hopper: one warp copies tiles of A and B to shared memory, another one
// their scales, a third one results from there; two or three warpgroups multiply.
#pragma once

#include "gpu/sm90a/gemm_columns.cuh"
#include "gpu/sm90a/gemm_copy.cuh"
#include "gpu/sm90a/gemm_multiply.cuh"
#include "gpu/sm90a/gemm_widen.cuh"

namespace mate::gpu::sm90a {

// One thread. copiers: of A and B.
template <typename Shape>
__device__ __forceinline__ void init_barriers(const GemmArgs& p, const GemmShared<Shape>& shared,
                                              int copiers) {
  prefetch_map(&p.a);
  prefetch_map(&p.b);
  for (int i = 0; i < Shape::kStages; ++i) {
    init_barrier(shared.full(i), copiers);
    init_barrier(shared.empty(i), Shape::kWarpgroups * 4 * Shape::kCluster);
  }
  for (int i = 0; i < kScaleSlots; ++i) {
    init_barrier(shared.scales_full(i), p.scale_copy == ScaleCopy::kWords ? 32 : 1);
    init_barrier(shared.scales_empty(i), Shape::kWarpgroups * 4);
  }
  for (int i = 0; i < Shape::kWarpgroups; ++i) {
    init_barrier(shared.out_full(i), 4);
    init_barrier(shared.out_empty(i), 1);
  }
  fence_barrier_init();
}

template <typename Shape, DType a_type, DType b_type, ScaleMode mode>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    gemm_kernel(const __grid_constant__ GemmArgs p) {
  constexpr int kCluster = Shape::kCluster, kWarpgroups = Shape::kWarpgroups;
  extern __shared__ __align__(1024) char memory[];
  const GemmShared<Shape> shared{memory};
  const GroupTable table(shared.table(), p.rows);
  if (threadIdx.x == kWarpgroups * 128) init_barriers(p, shared, 1);
  if (is_by_k<Shape>(p)) {
    fill_table_by_k(table, p.rows, p.k, p.scale_blocks, p.k_size == 1, Shape::kRows);
  } else {
    fill_table(table, p.rows, Shape::kRows);
  }
  if constexpr (kCluster > 1) {
    sync_cluster();
  } else {
    __syncthreads();
  }

  const int rank = kCluster > 1 ? block_in_cluster() : 0;
  const int first = blockIdx.x / kCluster, step = gridDim.x / kCluster;
  const Walk<Shape> walk(table, p.rows, Shape::kRows, p.tiling);
  if (threadIdx.x >= kWarpgroups * 128) {
    fewer_registers<Shape::kProducerRegisters>();
    const int warp = threadIdx.x / 32 - kWarpgroups * 4;
    const bool leads = threadIdx.x % 32 == 0;
    if (warp == 0 && leads) copy_tiles(p, shared, walk, first, step, rank);
    if (by_blocks(mode) && warp == 1) {
      if (p.scale_copy == ScaleCopy::kWords) {
        copy_scale_words(p, shared, walk, first, step, rank);
      } else if (leads) {
        copy_scale_boxes(p, shared, walk, first, step, rank);
      }
    }
    if (warp == 2 && leads && p.has_storer()) store_tiles(p, shared, walk, first, step, rank);
    __syncwarp();
  } else {
    more_registers<Shape::kConsumerRegisters>();
    multiply_tiles<Shape, a_type, b_type, mode>(p, shared);
  }
  // No block may leave while another one still signals to it.
  if constexpr (kCluster > 1) sync_cluster();
}

}  // namespace mate::gpu::sm90a
