// Which part of the work list falls to a thread block, and the tiles in it. The list holds the
// tiles of every item, in order; blocks take runs of it that differ by at most one tile.
#pragma once

#include "gpu/sm90a/indexer_items.cuh"

namespace mate::gpu::sm90a {

constexpr unsigned kAllLanes = 0xffffffff;

// `count` tiles from tile `tile` of item `item` on, the first `left` of them of that item, whose
// first tile is at `token`.
struct Share {
  int item, tile, count;
  int left, token;
};

// Shared memory that `find_share` works in.
struct ShareScratch {
  unsigned warp_sums[32];
  Share share;
};

// All of the block's `threads` threads. Sums of tiles are below 2^32: there is an item of each row
// at most, and all rows together have fewer logits than memory has bytes.
template <int threads, typename Items>
__device__ Share find_share(const Items& items, ShareScratch& scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int each = (items.count + threads - 1) / threads;
  const int first = min(static_cast<int>(threadIdx.x) * each, items.count);
  const int last = min(first + each, items.count);
  TileRun run{0, 0};
  unsigned tiles = 0;
#pragma unroll 1
  for (int i = first; i < last; ++i) tiles += (run = item_tiles(items, i)).tiles;
  unsigned before = tiles;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  if (lane == 31) scratch.warp_sums[warp] = before;
  before -= tiles;
  if (threadIdx.x == 0) scratch.share = {0, 0, 0, 0, 0};
  __syncthreads();

  unsigned total = 0;
#pragma unroll
  for (int i = 0; i < threads / 32; ++i) {
    if (i == warp) before += total;
    total += scratch.warp_sums[i];
  }
  const unsigned least = total / gridDim.x, extra = total - least * gridDim.x;
  const unsigned begin = blockIdx.x * least + min(blockIdx.x, extra);
  const int count = least + (blockIdx.x < extra ? 1 : 0);
  if (count > 0 && before <= begin && begin < before + tiles) {
    int i = first;
    if (each > 1) {
#pragma unroll 1
      for (; begin >= before + (run = item_tiles(items, i)).tiles; ++i) before += run.tiles;
    }
    const int tile = static_cast<int>(begin - before);
    scratch.share = {i, tile, count, min(run.tiles - tile, count), run.token};
  }
  __syncthreads();
  return scratch.share;
}

// A position in a block's share: tile `tile` of an item, which may be past the item's last one and
// then counts on through the items that follow.
struct SharePlace {
  int item, tile;
  int nth;   // items with tiles that come before in the share
  int rest;  // tiles of the share from here on
};

// Tiles of a share, one for each of the first `count` lanes: of the `nth` item there.
struct TileWindow {
  int count;
  int nth, token;
  int left;  // tiles of the item in the share from this one on
  TilePlace place;
};

// Every `step`-th tile from a place on, as many as a warp has lanes; moves the place to the one
// after them. All lanes of a warp.
template <int step, typename Items>
__device__ TileWindow next_tiles(const Items& items, SharePlace& at) {
  const int lane = threadIdx.x % 32, wanted = min((at.rest + step - 1) / step, 32);
  const int mark = min(lane, wanted - 1) * step, last_mark = (wanted - 1) * step;
  TileWindow mine{wanted, 0, 0, 0, {0, 0}};
  int mine_item = 0, mine_tile = 0;
  for (int found = 0; found <= last_mark && at.item < items.count;) {
    // The next 32 items; of the first one, what the place leaves.
    const int candidate = at.item + lane;
    TileRun run{0, 0};
    if (candidate < items.count) run = item_tiles(items, candidate);
    const unsigned busy = __ballot_sync(kAllLanes, run.tiles > 0);
    int sum = run.tiles - (lane == 0 ? at.tile : 0);
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, apart);
      if (lane >= apart) sum += other;
    }
    // The item of my tile is the first one whose running sum is past it.
    const int ahead = mark - found;
    int owner = 0;
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
      if (__shfl_sync(kAllLanes, sum, owner + apart - 1) <= ahead) owner += apart;
    }
    const int before = __shfl_sync(kAllLanes, sum, max(owner - 1, 0));
    const int past = __shfl_sync(kAllLanes, sum, owner);
    const int tiles = __shfl_sync(kAllLanes, run.tiles, owner);
    const int token = __shfl_sync(kAllLanes, run.token, owner);
    if (ahead >= 0 && ahead < past) {
      mine_item = at.item + owner;
      mine_tile = owner == 0 ? at.tile + ahead : ahead - before;
      mine.nth = at.nth + __popc(busy & ((1u << owner) - 1));
      mine.token = token + mine_tile * kTileTokens;
      mine.left = min(tiles - mine_tile, at.rest - mark);
    }
    found += __shfl_sync(kAllLanes, sum, 31);
    if (found <= last_mark) {
      at.item += 32;
      at.tile = 0;
      at.nth += __popc(busy);
    }
  }
  if (mine.left > 0) mine.place = tile_place(items, mine_item, mine.token);
  at.item = __shfl_sync(kAllLanes, mine_item, 31);
  at.tile = __shfl_sync(kAllLanes, mine_tile, 31) + step;
  at.nth = __shfl_sync(kAllLanes, mine.nth, 31);
  at.rest -= wanted * step;
  return mine;
}

// The same of the share's first item only: nothing but their places has to be looked up.
template <int step, typename Items>
__device__ TileWindow first_tiles(const Items& items, const Share& share, int ring,
                                  SharePlace& at) {
  const int wanted = min((share.left - ring + step - 1) / step, 32);
  const int mark = ring + threadIdx.x % 32 * step;
  const int token = share.token + (share.tile + mark) * kTileTokens;
  TileWindow mine{wanted, 0, token, share.left - mark, {0, 0}};
  if (mine.left > 0) mine.place = tile_place(items, share.item, token);
  const int past = ring + wanted * step;
  at = {share.item, share.tile + past, 0, share.count - past};
  return mine;
}

}  // namespace mate::gpu::sm90a
