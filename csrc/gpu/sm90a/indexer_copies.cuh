// The warp that feeds a block: it walks the block's share of the work list, copies each item's
// queries, weights and limits into a slot and each tile's keys into a stage.
#pragma once

#include "gpu/sm90a/indexer_shared.cuh"

namespace mate::gpu::sm90a {

// Tiles of the next window are looked up once so many of a window are under way.
constexpr int kLookAhead = 16;

// The first tile of an item whose share in this block has `tiles` of them. All lanes.
template <typename S, typename Items>
__device__ void copy_item(const ScoreArgs<Items>& p, const ScoreShared<S>& shared, int item,
                          int count, int tiles) {
  ScoreNotes<S>& notes = shared.notes();
  const int lane = threadIdx.x % 32, slot = count & 1;
  ItemNote<S>& note = notes.items[slot];
  Barrier* full = &notes.items_full[slot];
  Barrier* empty = &notes.items_empty[slot];
  if (count >= 2) wait(empty, (count >> 1 & 1) ^ 1);
  const RowRun rows = item_rows(p.items, item);
  if (lane == 0) {
    // Warpgroups that none of the tiles comes to will not say that they are done.
    constexpr int kWarps = S::kSplitsRows ? 0 : 4;
    if (tiles < S::kWarpgroups && kWarps > 0) arrive(empty, kWarps * (S::kWarpgroups - tiles));
    note.rows = rows;
    arrive_expecting(full, S::kQueryBytes);
    for (int i = 0; i < S::kItemRows; ++i) {
      load_box(shared.queries(slot) + i * S::kRowHeads * S::kDepth, &p.queries, full, 0, 0,
               rows.first + i, kEvictNormal);
    }
  }
  if (lane < S::kItemRows) {
    const int i = min(lane, rows.count - 1);
    const int32_t* first = first_of(p.items, rows, i);
    if (first != nullptr) copy_word(&note.first[lane], first, true);
    copy_word(&note.end[lane], end_of(p.items, rows, i), true);
  }
  for (int i = lane; i < S::kItemRows * S::kRowHeads; i += 32) {
    const int row = i / S::kRowHeads, head = i % S::kRowHeads;
    const bool exists = row < rows.count && head < p.heads;
    const float* weight = p.weights;
    if (exists) weight += (rows.first + row) * p.weight_row_stride + head * p.weight_head_stride;
    copy_word(&note.weights[row][head], weight, exists);
  }
  arrive_after_copies(full);
}

// All lanes of one warp.
template <typename S, typename Items>
__device__ void copy_tiles(const ScoreArgs<Items>& p, const ScoreShared<S>& shared, Share share) {
  ScoreNotes<S>& notes = shared.notes();
  const int lane = threadIdx.x % 32;
  StageRing ring{0, p.stages, 0};
  int item = -1, items = -1;
  int rest = share.count;
  KeyTile tiles = next_tiles(p.items, share);
  while (rest > 0) {
    const int window = min(rest, 32);
    KeyTile next = tiles;
    for (int i = 0; i < window; ++i, --rest, ring.advance(1)) {
      if (i == min(kLookAhead, window - 1)) next = next_tiles(p.items, share);
      const int tile_item = __shfl_sync(kAllLanes, tiles.item, i);
      const int left = min(__shfl_sync(kAllLanes, tiles.left, i), rest);
      const int token = __shfl_sync(kAllLanes, tiles.token, i);
      const int y = __shfl_sync(kAllLanes, tiles.place.y, i);
      const int z = __shfl_sync(kAllLanes, tiles.place.z, i);
      if (tile_item != item) {
        item = tile_item;
        copy_item(p, shared, item, ++items, left);
      }
      if (lane == 0) {
        // This lane alone: one that came late could find the barrier a phase further.
        wait(&notes.empty[ring.stage], ring.phase ^ 1);
        Barrier* full = &notes.full[ring.stage];
        notes.tiles[ring.stage] = {items, token, z >= 0, left <= S::kStep};
        arrive_expecting(full, S::kKeyBytes + S::kScaleBytes);
        load_box(shared.keys(ring.stage), &p.keys, full, 0, y, z, kEvictNormal);
        load_box(shared.scales(ring.stage), &p.key_scales, full, y, 0, z, kEvictNormal);
      }
      __syncwarp();
    }
    tiles = next;
  }
}

}  // namespace mate::gpu::sm90a
