// Groups that share the rows of a product and have ranges of k of their own.
#pragma once

#include "gpu/sm90a/gemm_args.h"
#include "gpu/sm90a/gemm_shape.cuh"
#include "gpu/sm90a/gemm_tiles.cuh"

namespace mate::gpu::sm90a {

// What one group has of k: steps [first, first + count), and blocks of scales from `block` on,
// which start anew at each group.
struct KRange {
  int first, count, block;
};

// One warp calls f(group, its range) with all lanes, also for groups past the last, which are
// empty. Lengths are cut to what exists.
template <typename F>
__device__ __forceinline__ void each_k_range(const Rows& rows, int64_t k, int64_t scale_blocks,
                                             const F& f) {
  const int groups = static_cast<int>(rows.num_groups), lane = threadIdx.x % 32;
  int64_t length_end = 0, block_end = 0;
  for (int base = 0; base < groups; base += 32) {
    const int g = base + lane;
    const int64_t length = g < groups ? max(0, rows.info[g * rows.info_stride]) : 0;
    const int64_t blocks = ceil_div(length, kScaleBlock);
    int64_t lengths = length, all_blocks = blocks;
    for (int step = 1; step < 32; step *= 2) {
      const int64_t l = __shfl_up_sync(~0u, lengths, step);
      const int64_t b = __shfl_up_sync(~0u, all_blocks, step);
      if (lane >= step) lengths += l, all_blocks += b;
    }
    const int64_t first = length_end + lengths - length;
    const int64_t block = block_end + all_blocks - blocks;
    const int64_t room = min(k - first, (scale_blocks - block) * kScaleBlock);
    const int64_t count = max(int64_t{0}, min(room, length));
    KRange range{0, 0, 0};
    if (count > 0) {
      range = {static_cast<int>(first), static_cast<int>(count), static_cast<int>(block)};
    }
    f(g, range);
    length_end += __shfl_sync(~0u, lengths, 31);
    block_end += __shfl_sync(~0u, all_blocks, 31);
  }
}

// All threads of the block. padded: groups start at multiples of kScaleBlock.
__device__ inline void fill_table_by_k(const GroupTable& table, const Rows& rows, int64_t k,
                                       int64_t scale_blocks, bool padded, int tile_rows) {
  const int groups = static_cast<int>(rows.num_groups);
  const int row_tiles = static_cast<int>(ceil_div(rows.rows, tile_rows));
  if (threadIdx.x >= 32) return;
  int before = 0;
  each_k_range(rows, k, scale_blocks, [&](int g, const KRange& range) {
    const unsigned busy = __ballot_sync(~0u, range.count > 0);
    if (g < groups) {
      table.first[g] = padded ? range.block * kScaleBlock : range.first;
      table.count[g] = range.count;
      table.tile[g] = (before + __popc(busy & ((1u << threadIdx.x) - 1))) * row_tiles;
    }
    before += __popc(busy);
  });
  if (threadIdx.x == 0) table.tile[groups] = before * row_tiles;
}

template <typename Shape>
__device__ __forceinline__ bool is_by_k(const GemmArgs& p) {
  return Shape::kRaggedK && p.rows.mode == RowMode::kRaggedK;
}

// Steps of 128 bytes along k of a tile. k: what its group has where products are by k, or what the
// block has where a tile is split.
template <typename Shape>
__device__ __forceinline__ int k_blocks_of(const GemmArgs& p, uint32_t k) {
  if (!Shape::kSplits && !is_by_k<Shape>(p)) return p.k_blocks;
  return static_cast<int>((k * p.k_size + kStepBytes - 1) / kStepBytes);
}

}  // namespace mate::gpu::sm90a
