// Which part of the work list falls to a thread block, and the tiles in it. The list holds the
// tiles of every item, in order; blocks take runs of it that differ by at most one tile.
#pragma once

#include "gpu/sm90a/indexer_items.cuh"

namespace mate::gpu::sm90a {

constexpr unsigned kAllLanes = 0xffffffff;

// `count` tiles from tile `tile` of item `item` on.
struct Share {
  int item, tile, count;
};

// Shared memory that `find_share` works in.
struct ShareScratch {
  long long warp_sums[32];
  Share share;
};

// All threads of the block.
template <typename Items>
__device__ Share find_share(const Items& items, ShareScratch& scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int each = (items.count + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
  const int first = min(static_cast<int>(threadIdx.x) * each, items.count);
  const int last = min(first + each, items.count);
  long long tiles = 0;
  for (int i = first; i < last; ++i) tiles += item_tiles(items, i).tiles;
  long long before = tiles;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const long long other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  if (lane == 31) scratch.warp_sums[warp] = before;
  before -= tiles;
  if (threadIdx.x == 0) scratch.share = {0, 0, 0};
  __syncthreads();

  long long total = 0;
  for (int i = 0; i < warps; ++i) {
    if (i == warp) before += total;
    total += scratch.warp_sums[i];
  }
  const long long begin = blockIdx.x * total / gridDim.x;
  const long long end = (blockIdx.x + 1) * total / gridDim.x;
  if (begin < end && before <= begin && begin < before + tiles) {
    for (int i = first; i < last; ++i) {
      const int n = item_tiles(items, i).tiles;
      if (begin < before + n) {
        scratch.share = {i, static_cast<int>(begin - before), static_cast<int>(end - begin)};
        break;
      }
      before += n;
    }
  }
  __syncthreads();
  return scratch.share;
}

// One tile of a share.
struct KeyTile {
  int item, token;
  int left;  // tiles of the item from this one on
  TilePlace place;
};

// Up to 32 tiles from a position of the work list on, one for each lane; moves the position past
// them. All lanes of a warp.
template <typename Items>
__device__ KeyTile next_tiles(const Items& items, Share& rest) {
  const int lane = threadIdx.x % 32, wanted = min(rest.count, 32);
  KeyTile mine{0, 0, 0, {0, 0}};
  int tile_in_item = 0, found = 0;
  if (wanted > 0) {
    // Mostly one item has all of them.
    const TileRun run = item_tiles(items, rest.item);
    if (run.tiles - rest.tile >= wanted) {
      found = wanted;
      tile_in_item = rest.tile + min(lane, wanted - 1);
      mine.item = rest.item;
      mine.token = run.token + tile_in_item * kTileTokens;
      mine.left = run.tiles - tile_in_item;
    }
  }
  while (found < wanted && rest.item < items.count) {
    // The next 32 items; of the first one, what the position leaves.
    const int candidate = rest.item + lane;
    TileRun run{0, 0};
    if (candidate < items.count) run = item_tiles(items, candidate);
    int sum = min(run.tiles - (lane == 0 ? rest.tile : 0), 32);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += other;
    }
    // The item of my tile is the first one whose running sum is past it.
    const int mark = lane - found;
    int owner = 0;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      if (__shfl_sync(kAllLanes, sum, owner + step - 1) <= mark) owner += step;
    }
    const int other = __shfl_sync(kAllLanes, sum, max(owner - 1, 0));
    const int before = owner > 0 ? other : 0;
    const int past = __shfl_sync(kAllLanes, sum, owner);
    const int tiles = __shfl_sync(kAllLanes, run.tiles, owner);
    const int token = __shfl_sync(kAllLanes, run.token, owner);
    if (mark >= 0 && mark < past && lane < wanted) {
      tile_in_item = mark - before + (owner == 0 ? rest.tile : 0);
      mine.item = rest.item + owner;
      mine.token = token + tile_in_item * kTileTokens;
      mine.left = tiles - tile_in_item;
    }
    found += __shfl_sync(kAllLanes, sum, 31);
    if (found < wanted) {
      rest.item += 32;
      rest.tile = 0;
    }
  }
  if (lane < wanted && mine.left > 0) mine.place = tile_place(items, mine.item, mine.token);
  rest.item = __shfl_sync(kAllLanes, mine.item, max(wanted, 1) - 1);
  rest.tile = __shfl_sync(kAllLanes, tile_in_item, max(wanted, 1) - 1) + 1;
  rest.count -= wanted;
  return mine;
}

}  // namespace mate::gpu::sm90a
