// Which part of the output a tile is.
#pragma once

#include "gpu/portable/plan.h"
#include "gpu/portable/products.cuh"

namespace mate::gpu::portable {

struct Tile {
  int64_t group;
  GroupRows rows;  // of the group
  int64_t row_first, col_first;
  int num_rows, num_cols;
};

// Largest g with first[g] <= tile; each lane looks at another part of what is left.
__device__ inline int64_t find_group(const int64_t* first, int64_t num_groups, int64_t tile) {
  const int lane = threadIdx.x % kWarp;
  int64_t low = 0, count = num_groups;
  while (count > 1) {
    const int64_t step = ceil_div(count, kWarp);
    const bool starts = lane * step < count && first[low + lane * step] <= tile;
    const int64_t last = (31 - __clz(static_cast<int>(__ballot_sync(kAllLanes, starts)))) * step;
    low += last;
    count = min(step, count - last);
  }
  return low;
}

// Tiles of one group follow one another, those of the same rows first.
__device__ inline Tile tile_at(const Gemm& p, const Plan& plan, int64_t i) {
  const int64_t col_tiles = ceil_div(p.n, kTileN), row_tile = i / col_tiles;
  Tile t;
  int64_t tile_in_group;
  if (plan.tile_first == nullptr) {
    t.group = row_tile / plan.whole_tiles;
    t.rows = plan.whole;
    tile_in_group = row_tile % plan.whole_tiles;
  } else {
    t.group = find_group(plan.tile_first, plan.num_groups, row_tile);
    t.rows = plan.groups[t.group];
    tile_in_group = row_tile - plan.tile_first[t.group];
  }
  t.row_first = tile_in_group * kTileM;
  t.col_first = i % col_tiles * kTileN;
  t.num_rows = static_cast<int>(min(static_cast<int64_t>(kTileM), t.rows.count - t.row_first));
  t.num_cols = static_cast<int>(min(static_cast<int64_t>(kTileN), p.n - t.col_first));
  return t;
}

}  // namespace mate::gpu::portable
