// Tiles of the Hopper GEMMs and where they lie in shared memory.
#pragma once

#include "gpu/sm90a/gemm_epilogue.cuh"
#include "gpu/sm90a/gemm_tiles.cuh"
#include "gpu/sm90a/ptx.cuh"

namespace mate::gpu::sm90a {

constexpr int kStepBytes = 128;  // of a row of A or B along k, in one step
// Scales travel by themselves, of so many steps at a time.
constexpr int kScaleSlots = 3;
constexpr int kScaleCols = 128;  // that share one

// halves: blocks of 64 rows of a warpgroup. Warpgroups share the columns of a tile, or its rows
// where side_by_side. cluster: blocks that share the rows of A. scale_cols: columns that share a
// scale of B.
template <int warpgroups, int halves, int wg_cols, bool side_by_side, int cluster, int stages,
          int scale_cols = kScaleCols>
struct GemmShape {
  // What a shape takes beyond the plain product of K-major operands; see gemm_forms.cuh.
  static constexpr bool kTurnedA = false, kTurnedB = false, kFinishes = false, kRaggedK = false;
  static constexpr bool kWidens = false, kSplits = false;

  static constexpr int kWarpgroups = warpgroups;  // that multiply
  static constexpr int kThreads = (kWarpgroups + 1) * 128;
  static constexpr int kProducerRegisters = kWarpgroups > 2 ? 32 : 40;
  static constexpr int kConsumerRegisters = kWarpgroups > 2 ? 160 : 232;
  static constexpr int kWgCols = wg_cols;
  static constexpr int kHalves = halves, kCluster = cluster, kStages = stages;
  static constexpr bool kSideBySide = side_by_side;
  static constexpr int kRows = 64 * halves * (side_by_side ? 1 : kWarpgroups);
  static constexpr int kCols = kWgCols * (side_by_side ? kWarpgroups : 1);
  static constexpr int kABytes = kRows * kStepBytes, kBBytes = kCols * kStepBytes;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kOutParts = wg_cols / 64;  // boxes of the output for a block of 64 rows
  static constexpr int kOutBytes = kWarpgroups * halves * kOutParts * OutStage::kBytes;
  // Blocks of columns that a tile meets, and runs of columns of a warpgroup in one block: tiles of
  // 192 columns cut blocks in half.
  static constexpr bool kColumnScales = scale_cols == 1;
  static constexpr int kColBlocks = (kCols + scale_cols - 1) / scale_cols;
  static constexpr int kWgColScales =
      wg_cols % kScaleCols == 0 ? wg_cols / kScaleCols : wg_cols / 64;
  static constexpr int kRowScaleBytes = kRows * kScaleSteps * 4;
  static constexpr int kColScaleBytes = kColBlocks * kScaleSteps * 4;
  static constexpr int kSlotBytes = kRowScaleBytes + (kColScaleBytes + 127) / 128 * 128;
  static constexpr int kBarrierBytes =
      2 * (stages + kScaleSlots + kWarpgroups) * static_cast<int>(sizeof(Barrier));
  static constexpr int kTileBytes = stages * static_cast<int>(sizeof(Tile));
  static constexpr int kBytes =
      stages * kStageBytes + kOutBytes + kScaleSlots * kSlotBytes + kBarrierBytes + kTileBytes;

  // Where a block of a warpgroup begins in the tile. Blocks of rows alternate between warpgroups,
  // so that all have work in a tile that is not full.
  __device__ static int first_row(int wg, int half) {
    return (side_by_side ? half : half * kWarpgroups + wg) * 64;
  }
  __device__ static int first_col(int wg) { return side_by_side ? wg * kWgCols : 0; }
};

// Whether a block may have a part of k alone.
template <typename Shape>
constexpr bool kHasKRange = Shape::kRaggedK || Shape::kSplits;

template <typename Shape>
using Walk = TileWalk<Shape::kRaggedK>;

template <typename Shape>
struct GemmShared {
  char* base;

  __device__ char* a(int stage) const { return base + stage * Shape::kStageBytes; }
  __device__ char* b(int stage) const { return a(stage) + Shape::kABytes; }
  // An OutStage for each 64 columns of a block of rows.
  __device__ char* out(int wg, int half) const {
    return base + Shape::kStages * Shape::kStageBytes +
           (wg * Shape::kHalves + half) * Shape::kOutParts * OutStage::kBytes;
  }
  // Scales of A [row, kScaleSteps] (kBoxesAlongRows: [kScaleSteps, row]), then of B [block of
  // columns, kScaleSteps] (kColumnScales: [kScaleSteps, column]).
  __device__ char* scales(int slot) const {
    return out(Shape::kWarpgroups, 0) + slot * Shape::kSlotBytes;
  }
  // The tile whose first step is in a stage.
  __device__ Tile* tile(int stage) const {
    return reinterpret_cast<Tile*>(scales(kScaleSlots)) + stage;
  }
  __device__ Barrier* full(int stage) const {
    return reinterpret_cast<Barrier*>(tile(Shape::kStages)) + stage;
  }
  __device__ Barrier* empty(int stage) const { return full(Shape::kStages) + stage; }
  __device__ Barrier* scales_full(int slot) const { return empty(Shape::kStages) + slot; }
  __device__ Barrier* scales_empty(int slot) const { return scales_full(kScaleSlots) + slot; }
  // Whether a warpgroup has staged its part of the output, and whether that was copied.
  __device__ Barrier* out_full(int wg) const { return scales_empty(kScaleSlots) + wg; }
  __device__ Barrier* out_empty(int wg) const { return out_full(Shape::kWarpgroups) + wg; }
  __device__ void* table() const { return out_empty(Shape::kWarpgroups); }
};

// Position in the ring of stages.
template <int stages>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void next() {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace mate::gpu::sm90a
