// The warps that feed a block. Each walks the block's share of the work list: one copies the
// queries, weights and limits of each item into a slot, the others keys of tiles into their stages.
#pragma once

#include "gpu/sm90a/indexer_shared.cuh"

namespace mate::gpu::sm90a {

// The `nth` item of a share, which has `tiles` tiles there. All lanes.
template <typename S, typename Items>
__device__ void copy_item(const ScoreArgs<Items>& p, const ScoreShared<S>& shared, int item,
                          int nth, int tiles) {
  ScoreNotes<S>& notes = shared.notes();
  const int lane = threadIdx.x % 32, slot = nth & 1;
  ItemNote<S>& note = notes.items[slot];
  Barrier* full = &notes.items_full[slot];
  Barrier* empty = &notes.items_empty[slot];
  if (nth >= 2) {
    wait(empty, (nth >> 1 & 1) ^ 1);
    if (lane == 0) *const_cast<volatile int*>(&notes.items_begun) = nth + 1;
  }
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
__device__ void copy_items(const ScoreArgs<Items>& p, const ScoreShared<S>& shared,
                           const Share& share) {
  const int lane = threadIdx.x % 32;
  // The lanes know the tiles of `known` items from `base` on: first of one, as the share says.
  int base = share.item, known = 1, nth = 0;
  int tiles = lane == 0 ? share.left : 0;
#pragma unroll 1
  for (int rest = share.count; rest > 0;) {
    const unsigned busy = __ballot_sync(kAllLanes, tiles > 0);
    if (busy == 0) {
      base += known;
      known = 32;
      if (base >= p.items.count) break;
      tiles = base + lane < p.items.count ? item_tiles(p.items, base + lane).tiles : 0;
      continue;
    }
    const int i = __ffs(busy) - 1, here = min(__shfl_sync(kAllLanes, tiles, i), rest);
    copy_item(p, shared, base + i, nth++, here);
    rest -= here;
    if (lane == i) tiles = 0;
  }
}

// The tiles of a ring. All lanes of one warp.
template <typename S, typename Items>
__device__ void copy_tiles(const ScoreArgs<Items>& p, const ScoreShared<S>& shared,
                           const Share& share, int of_ring) {
  constexpr int kStep = S::kRings, kAhead = ScoreShared<S>::kRingStages;
  ScoreNotes<S>& notes = shared.notes();
  const int lane = threadIdx.x % 32;
  const uint64_t hint = p.keys_once ? kEvictFirst : kEvictNormal;
  StageRing<S> ring(of_ring);
  int begun = 2;
  SharePlace at;
  TileWindow tiles = first_tiles<kStep>(p.items, share, of_ring, at);
  while (tiles.count > 0 || at.rest > 0) {
    TileWindow next{};
    const int turns = max(tiles.count, 1);  // one to look further where there is no tile
    for (int i = 0; i < turns; ++i) {
      const int nth = __shfl_sync(kAllLanes, tiles.nth, i);
      const int left = __shfl_sync(kAllLanes, tiles.left, i);
      const int token = __shfl_sync(kAllLanes, tiles.token, i);
      const int y = __shfl_sync(kAllLanes, tiles.place.y, i);
      const int z = __shfl_sync(kAllLanes, tiles.place.z, i);
      if (i < tiles.count) {
        if (lane == 0) {
          // A warpgroup that heard of an item before its slot is free would take what is there.
          while (nth >= begun) begun = *const_cast<volatile int*>(&notes.items_begun);
          // This lane alone: one that came late could find the barrier a phase further.
          wait(&notes.empty[ring.stage], ring.phase ^ 1);
          Barrier* full = &notes.full[ring.stage];
          notes.tiles[ring.stage] = {nth, token, z >= 0, left <= kStep};
          arrive_expecting(full, S::kKeyBytes + S::kScaleBytes);
          load_box(shared.keys(ring.stage), &p.keys, full, 0, y, z, hint);
          load_box(shared.scales(ring.stage), &p.key_scales, full, y, 0, z, hint);
        }
        __syncwarp();
        ring.advance();
      }
      // While this warp would wait for a stage.
      if (i == min(kAhead, turns) - 1 && at.rest > 0) next = next_tiles<kStep>(p.items, at);
    }
    tiles = next;
  }
}

}  // namespace mate::gpu::sm90a
