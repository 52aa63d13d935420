// Shared memory of the indexer's kernels: two slots of an item's queries, a ring of key tiles.
#pragma once

#include "gpu/sm90a/indexer_share.cuh"
#include "gpu/sm90a/ptx.cuh"

namespace mate::gpu::sm90a {

// `ScoreShape` as constants.
template <int depth, int columns, int groups, int row_heads, bool splits_rows>
struct Shape {
  static constexpr ScoreShape kOf{columns, groups, row_heads, splits_rows};
  static constexpr int kDepth = depth, kColumns = columns, kGroups = groups, kRowHeads = row_heads;
  static constexpr bool kSplitsRows = splits_rows;
  static constexpr int kWarpgroups = kOf.warpgroups(), kThreads = (kWarpgroups + 1) * 128;
  static constexpr int kGroupRows = kOf.group_rows(), kWarpgroupRows = kOf.warpgroup_rows();
  static constexpr int kItemRows = kOf.item_rows();
  // Rings of stages, each with a warp that fills it: warpgroups that take tiles in turn have one
  // each, so that none waits for a tile that is not its own.
  static constexpr int kRings = splits_rows ? 1 : kWarpgroups;

  static constexpr int kQueryBytes = kItemRows * row_heads * depth;
  static constexpr int kKeyBytes = kTileTokens * depth, kScaleBytes = kTileTokens * 4;
};

// What consumers are told of a tile.
struct TileNote {
  int item;  // counts the items of this block
  int token;
  bool exists;  // in a block that is there
  bool last;    // of the item's tiles that come to the same warpgroup
};

// What they are told of an item: its rows, and what memory holds about the limits of each.
template <typename S>
struct ItemNote {
  RowRun rows;
  int first[S::kItemRows], end[S::kItemRows];
  float weights[S::kItemRows][S::kRowHeads];
};

// Where the logits of a row go: of the tokens [first, end), that of token t to out[t].
struct alignas(16) RowTarget {
  int first, end;
  float* out;
};

constexpr int kMaxStages = 24;
constexpr int kMostBytes = 227 << 10;
// Of tiles that one block has asked for. Memory answers no faster to more of them, and less evenly:
// some multiprocessors then finish long before the others.
constexpr int kFlightBytes = 76 << 10;

constexpr int least(int a, int b, int c) { return a < b ? (a < c ? a : c) : (b < c ? b : c); }

template <typename S>
struct ScoreNotes {
  ItemNote<S> items[2];
  RowTarget targets[S::kWarpgroups][S::kWarpgroupRows];
  TileNote tiles[kMaxStages];
  Barrier full[kMaxStages], empty[kMaxStages];
  Barrier items_full[2], items_empty[2];
  int items_begun;  // those whose slots were free so far: no tile of another may be told of
  ShareScratch share;
};

template <typename S>
struct ScoreShared {
  static constexpr int kFixedBytes = 2 * S::kQueryBytes + static_cast<int>(sizeof(ScoreNotes<S>));
  static constexpr int kStageBytes = S::kKeyBytes + S::kScaleBytes;
  static constexpr int kRingStages =
      least(kMaxStages, kFlightBytes / kStageBytes, (kMostBytes - kFixedBytes) / kStageBytes) /
      S::kRings;
  static constexpr int kStages = kRingStages * S::kRings;
  static constexpr int kBytes = kFixedBytes + kStages * kStageBytes;
  static_assert(kRingStages >= 2);

  char* base;

  // Every part is a multiple of 1024 bytes, which swizzled tiles want, up to the scales.
  __device__ char* queries(int slot) const { return base + slot * S::kQueryBytes; }
  __device__ char* keys(int stage) const { return queries(2) + stage * S::kKeyBytes; }
  __device__ float* scales(int stage) const {
    return reinterpret_cast<float*>(keys(kStages)) + stage * kTileTokens;
  }
  __device__ ScoreNotes<S>& notes() const {
    return *reinterpret_cast<ScoreNotes<S>*>(scales(kStages));
  }
};

// Position in a ring of stages.
template <typename S>
struct StageRing {
  int first, stage;  // of this ring, in work
  uint32_t phase;

  __device__ explicit StageRing(int ring)
      : first(ring * ScoreShared<S>::kRingStages), stage(first), phase(0) {}

  __device__ void advance() {
    if (++stage == first + ScoreShared<S>::kRingStages) {
      stage = first;
      phase ^= 1;
    }
  }
};

}  // namespace mate::gpu::sm90a
