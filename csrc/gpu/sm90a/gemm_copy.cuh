// What brings tiles and their scales to shared memory, and results from there.
#pragma once

#include "gpu/sm90a/gemm_args.h"
#include "gpu/sm90a/gemm_ragged_k.cuh"
#include "gpu/sm90a/gemm_shape.cuh"
#include "gpu/sm90a/gemm_tiles.cuh"
#include "gpu/sm90a/gemm_turned.cuh"

namespace mate::gpu::sm90a {

// Here kByK is asked where a value is used and not kept in variables: so plain kernels come out as
// if there were no other groups than of rows.

// Apart from tiles and ahead of them: boxes of scales are narrow, which takes the copy engine long.
// Tiles: a Walk, or what has its members.
template <typename Shape, typename Tiles>
__device__ void copy_scale_boxes(const GemmArgs& p, const GemmShared<Shape>& shared, Tiles walk,
                                 int first_tile, int tile_step, int rank) {
  constexpr bool kByK = kHasKRange<Shape>;
  Ring<kScaleSlots> ring;
  const bool along_k = p.scale_copy == ScaleCopy::kBoxesAlongK;
  for (int tile = first_tile; walk.find(tile); tile += tile_step) {
    const int col = (walk.n_tile * Shape::kCluster + rank) * Shape::kCols;
    const int z = walk.plane(), row = walk.row_first;
    const int first_block = kByK ? walk.k_first / kScaleBlock : 0;
    for (int k = 0; k < (kByK ? k_blocks_of<Shape>(p, walk.k) : p.k_blocks);
         k += kScaleSteps, ring.next()) {
      const int block = first_block + k;
      Barrier* full = shared.scales_full(ring.stage);
      char* to = shared.scales(ring.stage);
      wait(shared.scales_empty(ring.stage), ring.phase ^ 1);
      arrive_expecting(full, Shape::kRowScaleBytes + Shape::kColScaleBytes);
      load_box(to, &p.a_scales, full, along_k ? block : row, along_k ? row : block, z,
               kEvictNormal);
      const int x = Shape::kColumnScales ? col : block;
      const int y = Shape::kColumnScales ? block : col / kScaleCols;
      load_box(to + Shape::kRowScaleBytes, &p.b_scales, full, x, y,
               kByK ? walk.b_plane() : walk.group, kEvictNormal);
    }
  }
}

template <typename Shape>
__device__ void copy_tiles(const GemmArgs& p, const GemmShared<Shape>& shared, Walk<Shape> walk,
                           int first_tile, int tile_step, int rank) {
  constexpr bool kByK = Shape::kRaggedK;
  constexpr int kCluster = Shape::kCluster, kBBytes = Shape::kBBytes / (Shape::kWidens ? 2 : 1);
  Ring<Shape::kStages> ring;
  const int k_step = kStepBytes / static_cast<int>(p.k_size);
  for (int tile = first_tile; walk.find(tile); tile += tile_step) {
    const int n_first = (walk.n_tile * kCluster + rank) * Shape::kCols;
    const int z = walk.plane(), k_first = kByK ? walk.k_first : 0;
    const int boxes = kCluster > 1 ? 1
                                   : min(Shape::kRows / p.a_box_rows,
                                         (walk.rows + p.a_box_rows - 1) / p.a_box_rows);
    const int a_bytes = kCluster > 1 ? Shape::kABytes : boxes * p.a_box_rows * kStepBytes;
    for (int k = 0; k < (kByK ? k_blocks_of<Shape>(p, walk.k) : p.k_blocks); ++k, ring.next()) {
      Barrier* full = shared.full(ring.stage);
      wait(shared.empty(ring.stage), ring.phase ^ 1);
      if (k == 0) *shared.tile(ring.stage) = {walk.group, walk.row_first, walk.rows, n_first};
      arrive_expecting(full, a_bytes + kBBytes);
      char* a = shared.a(ring.stage);
      if constexpr (Shape::kTurnedA) {
        load_planes(a, &p.a, full, boxes, walk.row_first, k_first + k * k_step, z);
      } else if constexpr (kCluster > 1) {
        const int part = rank * p.a_box_rows;
        load_box_to((1 << kCluster) - 1, a + part * kStepBytes, &p.a, full, k_first + k * k_step,
                    walk.row_first + part, z, kEvictNormal);
      } else {
        for (int i = 0; i < boxes; ++i) {
          load_box(a + i * p.a_box_rows * kStepBytes, &p.a, full, k_first + k * k_step,
                   walk.row_first + i * p.a_box_rows, z, kEvictNormal);
        }
      }
      if constexpr (Shape::kTurnedB) {
        load_planes(shared.b(ring.stage), &p.b, full, Shape::kCols / kPlaneRows, n_first,
                    k_first + k * k_step, kByK ? walk.b_plane() : walk.group);
      } else {
        load_box(shared.b(ring.stage) + Shape::kBBytes - kBBytes, &p.b, full, k_first + k * k_step,
                 n_first, kByK ? walk.b_plane() : walk.group, kEvictNormal);
      }
    }
  }
  wait(shared.empty(ring.stage), ring.phase ^ 1);
  shared.tile(ring.stage)->rows = -1;
  arrive(shared.full(ring.stage));
}

// One warp, by words, scales of four steps at a time, without waiting for them.
template <typename Shape, typename Tiles>
__device__ void copy_scale_words(const GemmArgs& p, const GemmShared<Shape>& shared, Tiles walk,
                                 int first_tile, int tile_step, int rank) {
  constexpr bool kByK = kHasKRange<Shape>;
  const int lane = threadIdx.x % 32;
  const Scales &a = p.a_scale, &b = p.b_scale;
  Ring<kScaleSlots> ring;
  for (int tile = first_tile; walk.find(tile); tile += tile_step) {
    const int n_first = (walk.n_tile * Shape::kCluster + rank) * Shape::kCols;
    const int col = Shape::kColumnScales ? n_first + lane
                                         : n_first / kScaleCols * kScaleCols + lane * kScaleCols;
    const int first_block = kByK ? walk.k_first / kScaleBlock : 0;
    const float *of_rows = &kOne, *of_cols = &kOne;
    if (a.data != nullptr) {
      of_rows = a.data + walk.plane() * a.group_stride + (walk.row_first + lane) * a.row_stride +
                first_block * a.k_stride;
    }
    if (b.data != nullptr) {
      of_cols = b.data + (kByK ? walk.b_plane() : walk.group) * b.group_stride +
                min(col, p.n - 1) / b.row_block * b.row_stride + first_block * b.k_stride;
    }
    const int rows = min(walk.rows, Shape::kRows);
    for (int k = 0; k < (kByK ? k_blocks_of<Shape>(p, walk.k) : p.k_blocks);
         k += kScaleSteps, ring.next()) {
      const int steps = min(kScaleSteps, (kByK ? k_blocks_of<Shape>(p, walk.k) : p.k_blocks) - k);
      uint32_t to = shared_address(shared.scales(ring.stage)) + lane * kScaleSteps * 4;
      wait(shared.scales_empty(ring.stage), ring.phase ^ 1);
      if constexpr (Shape::kColumnScales) {
        const uint32_t first = shared_address(shared.scales(ring.stage)) + Shape::kRowScaleBytes;
        const int cols = min(Shape::kCols, p.n - n_first);
#pragma unroll 1
        for (int c = lane; c < cols; c += 32) {
#pragma unroll 1
          for (int i = 0; i < steps; ++i) {
            copy_async<4>(first + (i * Shape::kCols + c) * 4,
                          of_cols + (c - lane) * b.row_stride + i * b.k_stride);
          }
        }
      } else if (lane < Shape::kColBlocks) {
#pragma unroll 1
        for (int i = 0; i < steps; ++i) {
          copy_async<4>(to + Shape::kRowScaleBytes + i * 4, of_cols + i * b.k_stride);
        }
      }
      const float* from = of_rows;
#pragma unroll 1
      for (int row = lane; row < rows; row += 32) {
#pragma unroll 1
        for (int i = 0; i < steps; ++i) copy_async<4>(to + i * 4, from + i * a.k_stride);
        to += 32 * kScaleSteps * 4;
        from += 32 * a.row_stride;
      }
      arrive_after_copies(shared.scales_full(ring.stage));
      of_rows += kScaleSteps * a.k_stride;
      of_cols += kScaleSteps * b.k_stride;
    }
  }
}

// Blocks of results that are full, and the overlap signal. Apart from the warps that multiply: each
// of the copy engine's stores holds up the warp that asks for it.
template <typename Shape>
__device__ void store_tiles(const GemmArgs& p, const GemmShared<Shape>& shared, Walk<Shape> walk,
                            int first_tile, int tile_step, int rank) {
  constexpr bool kByK = Shape::kRaggedK;
  uint32_t phase = 0;
  for (int tile = first_tile; walk.find(tile); tile += tile_step, phase ^= 1) {
    const int n_first = (walk.n_tile * Shape::kCluster + rank) * Shape::kCols;
    const int z = kByK ? walk.out_plane() : walk.plane();
#pragma unroll 1
    for (int wg = 0; wg < Shape::kWarpgroups; ++wg) {
      wait(shared.out_full(wg), phase);
#pragma unroll 1
      for (int i = 0; i < Shape::kHalves * Shape::kOutParts; ++i) {
        const int half = i / Shape::kOutParts, part = i % Shape::kOutParts;
        const int row = Shape::first_row(wg, half),
                  col = n_first + Shape::first_col(wg) + part * 64;
        if (p.out_boxes && walk.rows >= row + OutStage::kRows && col < p.n) {
          store_box(&p.out_map, shared_address(shared.out(wg, half) + part * OutStage::kBytes), col,
                    walk.row_first + row, z);
        }
      }
    }
    commit_stores();
    wait_stores_read<0>();
    for (int wg = 0; wg < Shape::kWarpgroups; ++wg) arrive(shared.out_empty(wg));
    if (p.signal.data != nullptr && n_first < p.n) {
      wait_stores<0>();
      __threadfence();
      atomicAdd(p.signal.data + walk.group * p.signal.per_group + walk.row_in_group / Shape::kRows,
                1);
    }
  }
  wait_stores<0>();
}

}  // namespace mate::gpu::sm90a
