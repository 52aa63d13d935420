// What the Hopper GEMM kernels get from the host.
#pragma once

#include <cuda.h>

#include "gpu/gemm.h"
#include "gpu/sm90a/tensor_map.h"

namespace mate::gpu::sm90a {

// Whether A, its scales and the output have a matrix for each group.
__host__ __device__ inline bool is_batched(const Rows& rows) {
  return rows.mode == RowMode::kBatched || rows.mode == RowMode::kMasked;
}

constexpr int kScaleBlock = 128;  // of k
constexpr int kScaleSteps = 4;    // whose scales travel together

// How scales reach the sums: after every block of 128 of k, once at the end, or not at all; in
// kColumns after every block too, and each column of B has its own.
enum class ScaleMode { kBlocks, kEnd, kNone, kColumns };
MATE_ANYWHERE constexpr bool by_blocks(ScaleMode mode) {
  return mode == ScaleMode::kBlocks || mode == ScaleMode::kColumns;
}

// How scales of blocks reach shared memory: by words, or by boxes of the copy engine, those of A
// from scales that lie along k or along rows.
enum class ScaleCopy { kWords, kBoxesAlongK, kBoxesAlongRows };

// ceil(2^32 / d) where d > 1.
__host__ __device__ inline uint32_t inverse_of(uint32_t d) { return 0xffffffffu / d + 1; }

// Columns of tiles that clusters meet, and how many rows of tiles make a band.
struct Tiling {
  int n_tiles, band;
  uint32_t band_inverse, band_tiles_inverse;

  Tiling() = default;
  Tiling(int n_tiles, int band)
      : n_tiles(n_tiles),
        band(band),
        band_inverse(inverse_of(band)),
        band_tiles_inverse(inverse_of(n_tiles * band)) {}
};

struct GemmArgs {
  CUtensorMap a, b;
  Rows rows;
  int n, k_blocks;  // columns of the output, steps of 128 bytes along k
  Tiling tiling;
  int a_box_rows;  // rows of A that one copy moves
  int k_size;      // bytes of an element
  Scales a_scale, b_scale;
  CUtensorMap a_scales, b_scales;  // where the copy engine takes them
  ScaleCopy scale_copy;
  Output out;
  CUtensorMap out_map;
  bool out_boxes;  // whether the copy engine writes blocks of 64 rows that are full
  Signal signal;
  int64_t k, scale_blocks;  // as in Gemm

  __host__ __device__ bool has_storer() const { return out_boxes || signal.data != nullptr; }
};

// Operands as the copy engine sees them, in boxes of `x` elements of `rows` rows.
TensorBox a_box(const Gemm& p, int x, int rows);
TensorBox b_box(const Gemm& p, int x, int rows);
TensorBox out_box(const Gemm& p, int x, int rows);
// The same of operands whose rows lie along k, in boxes of `rows` elements of `k` steps along k.
TensorBox turned_a_box(const Gemm& p, int rows, int k);
TensorBox turned_b_box(const Gemm& p, int rows, int k);

// Scales by blocks in the same way.
ScaleCopy scale_copy(const Gemm& p);
TensorBox a_scale_box(const Gemm& p, int x, int y, bool along_k);
TensorBox b_scale_box(const Gemm& p, int x, int y);
TensorBox b_column_scale_box(const Gemm& p, int x, int y);

// Tiles that a product may be cut into: rows, columns, blocks of a cluster that share rows of A,
// and cycles of a multiprocessor for 128 bytes along k and for what a tile takes beside (measured).
enum class TileForm { kSmall, kNarrow, kWide, kTall, kPairs };
struct TileCost {
  int rows, cols, cluster;
  double step, tile;
};
constexpr TileCost kTileCosts[] = {
    {64, 256, 1, 800, 1500},   // kSmall
    {128, 64, 1, 400, 900},    // kNarrow
    {128, 192, 1, 810, 1750},  // kWide
    {192, 128, 2, 785, 1750},  // kTall
    {256, 128, 2, 1055, 2800}  // kPairs
};
constexpr const TileCost& cost_of(TileForm form) { return kTileCosts[static_cast<int>(form)]; }

// The form that serves a product soonest, as far as the host can know.
TileForm tile_form(const Gemm& p, int num_sms);
ScaleMode scale_mode(const Gemm& p);

// How products of few rows are split: tiles of `rows` rows and kSplitCols columns, each by `parts`
// blocks of a cluster, which have parts of k. No parts where whole tiles are as fast.
constexpr int kSplitCols = 128, kMostParts = 8;
struct Split {
  int rows, parts;
};
Split split_of(const Gemm& p, int num_sms);
// Clusters of so many blocks that the current device runs at a time: fewer than its multiprocessors
// are enough for, as a cluster stays within one of their groups.
int clusters_at_once(int parts);

// One for each pair of types.
void gemm_e4m3(const Gemm& p, const Launch& launch);
void gemm_split(const Gemm& p, const Split& split, const Launch& launch);
void gemm_mixed_fp8(const Gemm& p, const Launch& launch);
void gemm_16bit(const Gemm& p, const Launch& launch);

// Forms that have one shape each: gemm_forms.cuh. Tiles of scales by column, and of the others that
// may come with a signal.
constexpr SignalUnits kColumnsTile{192, 128}, kFormTile{128, 128};
void gemm_columns(const Gemm& p, const Launch& launch);
void gemm_finishing(const Gemm& p, const Launch& launch);
void gemm_turned(const Gemm& p, const Launch& launch);
void gemm_w8a16(const Gemm& p, const Launch& launch);

}  // namespace mate::gpu::sm90a
