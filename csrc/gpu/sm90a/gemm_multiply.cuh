// What multiplies tiles in shared memory. Sums of 128 products leave the tensor cores for float32
// registers, where scales come in (two-level accumulation, as DeepSeek-V3's report describes it in
// section 3.3.2).
#pragma once

#include <type_traits>

#include "gpu/sm90a/gemm_args.h"
#include "gpu/sm90a/gemm_shape.cuh"
#include "gpu/sm90a/gemm_tiles.cuh"
#include "gpu/sm90a/wgmma.cuh"

namespace mate::gpu::sm90a {

// Scales that do not depend on k; those of B may be by column. row: of the tile.
template <int count>
__device__ __forceinline__ void scale_sums(const GemmArgs& p, const TileWalk& tile, int row,
                                           int col, int lane, float (&sums)[count]) {
  const Scales &a = p.a_scale, &b = p.b_scale;
  float of_rows[2] = {1.0f, 1.0f};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (a.data == nullptr) break;
    // Rows of no token take the scale of one that is there.
    of_rows[r] = a.data[(tile.is_batched() ? tile.group : 0) * a.group_stride +
                        (tile.row_first + min(row + 8 * r, tile.rows - 1)) * a.row_stride];
  }
  const float* of_group = b.data == nullptr ? nullptr : b.data + tile.group * b.group_stride;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    float of_col = 1.0f;
    if (of_group != nullptr) {
      const int c = min(col + i / 4 * 8 + lane % 4 * 2 + i % 2, p.n - 1);
      of_col = of_group[c / b.row_block * b.row_stride];
    }
    sums[i] *= of_rows[i % 4 / 2] * of_col;
  }
}

template <int count>
using Count = std::integral_constant<int, count>;

// A value that is the same in all lanes, where the compiler keeps it once for the warp and does not
// compute it again.
__device__ __forceinline__ uint32_t uniform(uint32_t x) { return __shfl_sync(~0u, x, 0); }

// Where a thread of a multiplying warpgroup stands: in a tile, in the ring of stages, and in that
// of scales.
template <typename Shape>
class Multiplier {
 public:
  static constexpr int kHalves = Shape::kHalves, kSums = Shape::kWgCols / 2;

  int wg, warp, lane;

  __device__ Multiplier(const GemmShared<Shape>& shared, ScaleCopy scale_copy)
      : wg(uniform(threadIdx.x / 128)), warp(uniform(threadIdx.x / 32)), lane(threadIdx.x % 32) {
    const uint32_t base = shared_address(shared.base);
    a_first_ = uniform(descriptor_low(base + first_row(0) * kStepBytes));
    b_first_ = uniform(descriptor_low(base + Shape::kABytes + first_col() * kStepBytes));
    full_ = shared_address(shared.full(0));
    empty_ = shared_address(shared.empty(0));
    if (Shape::kCluster > 1) empty_ = address_in(empty_, lane % Shape::kCluster);
    const bool along_rows = scale_copy == ScaleCopy::kBoxesAlongRows;
    row_bytes_ = along_rows ? 4 : kScaleSteps * 4;
    step_bytes_ = along_rows ? Shape::kRows * 4 : 4;
    row_scales_ = shared_address(shared.scales(0)) + thread_row(0) * row_bytes_;
    col_scales_ = shared_address(shared.scales(0)) + Shape::kRowScaleBytes;
    scales_full_ = shared_address(shared.scales_full(0));
    scales_empty_ = shared_address(shared.scales_empty(0));
  }

  // Blocks of rows alternate between warpgroups, so that both have work in a tile that is not full.
  __device__ int first_row(int half) const {
    return (Shape::kSideBySide ? half : half * kWarpgroups + wg) * 64;
  }
  __device__ int first_col() const { return Shape::kSideBySide ? wg * Shape::kWgCols : 0; }
  __device__ int thread_row(int half) const { return first_row(half) + warp % 4 * 16 + lane / 4; }

  __device__ __forceinline__ void wait_full() const {
    if (!ready_) wait_at(full_ + ring_.stage * 8, ring_.phase);
  }
  // Goes to the next stage; asks early whether it is there.
  __device__ __forceinline__ void next_stage() {
    used_ = ring_.stage;
    ring_.next();
    ready_ = test_at(full_ + ring_.stage * 8, ring_.phase);
  }
  // Gives the stage back from which the last products came.
  __device__ __forceinline__ void signal_empty() const {
    if (Shape::kCluster == 1) {
      if (lane == 0) arrive_at(empty_ + used_ * 8);
    } else {
      if (lane < Shape::kCluster) arrive_remote(empty_ + used_ * 8);
    }
  }

  __device__ __forceinline__ void wait_scales() const {
    wait_at(scales_full_ + slots_.stage * 8, slots_.phase);
  }
  __device__ __forceinline__ void signal_scales() {
    if (lane == 0) arrive_at(scales_empty_ + slots_.stage * 8);
    slots_.next();
  }
  // step: of the slot. r: 0 or 8.
  __device__ __forceinline__ float row_scale(int half, int r, int step) const {
    return load_shared(row_scales_ + slots_.stage * Shape::kSlotBytes + step * step_bytes_ +
                       (first_row(half) - first_row(0) + r) * row_bytes_);
  }
  // i: of the blocks of columns of the tile.
  __device__ __forceinline__ float col_scale(int i, int step) const {
    return load_shared(col_scales_ + slots_.stage * Shape::kSlotBytes + step * 4 +
                       i * (kScaleSteps * 4));
  }

  template <DType a_type, DType b_type>
  __device__ __forceinline__ void start(int half, float (&sums)[kSums], bool adds) const {
    constexpr uint32_t kHalf = (Shape::kSideBySide ? 64 : 128) * kStepBytes / 16;
    const uint32_t stage = ring_.stage * (Shape::kStageBytes / 16);
    const uint32_t a = a_first_ + stage + half * kHalf, b = b_first_ + stage;
    fence_sums(sums);
    multiply_128<a_type, b_type, Shape::kWgCols>(sums, descriptor_at(a), descriptor_at(b), adds);
    fence_sums(sums);
  }

 private:
  uint32_t a_first_, b_first_;  // descriptors of what the warpgroup multiplies, in the first stage
  uint32_t full_;               // barriers of the first stage
  uint32_t empty_;              // those that this lane signals to, in its block of the cluster
  uint32_t row_scales_, col_scales_, scales_full_, scales_empty_;  // of the first slot
  uint32_t row_bytes_, step_bytes_;                                // from scale to scale of A
  Ring<Shape::kStages> ring_;
  Ring<kScaleSlots> slots_;
  int used_ = 0;
  bool ready_ = false;
};

// Scales of a step, which are read from shared memory a step ahead: a wait between two products
// would be one of the tensor cores.
template <typename Shape, int active>
struct StepScales {
  float of_rows[active][2], of_cols[Shape::kWgColScales];

  // first_run: number of 64 columns from the start of the tile's first block.
  __device__ __forceinline__ void read(const Multiplier<Shape>& at, int first_run, int step) {
    constexpr int kRuns = Shape::kWgCols / Shape::kWgColScales / 64;
#pragma unroll
    for (int i = 0; i < Shape::kWgColScales; ++i) {
      of_cols[i] = at.col_scale((first_run + i * kRuns) / (kScaleCols / 64), step);
    }
#pragma unroll
    for (int h = 0; h < active; ++h) {
      of_rows[h][0] = at.row_scale(h, 0, step);
      of_rows[h][1] = at.row_scale(h, 8, step);
    }
  }

  // Those of step k, where there is one; a slot is given back with its last scale.
  __device__ __forceinline__ void read_next(Multiplier<Shape>& at, int first_run, int k,
                                            int k_blocks) {
    const int step = k % kScaleSteps;
    if (step == 0 || k == k_blocks) at.signal_scales();
    if (k == k_blocks) return;
    if (step == 0) at.wait_scales();
    read(at, first_run, step);
  }
};

// All steps along k of one tile, of which `active` blocks of rows are this warpgroup's. Between the
// end of products and the start of the next ones is nothing but the sums; the rest is done while
// products run.
template <int active, DType a_type, DType b_type, ScaleMode mode, typename Shape>
__device__ __forceinline__ void multiply_steps(int k_blocks, int first_run, Multiplier<Shape>& at,
                                               float (&sums)[Shape::kHalves][Shape::kWgCols / 2]) {
  constexpr bool kScaled = mode == ScaleMode::kBlocks;
  constexpr int kSums = Shape::kWgCols / 2, kColScales = Shape::kWgColScales;
  StepScales<Shape, active> scales;
  if constexpr (kScaled) {
    at.wait_scales();
    scales.read(at, first_run, 0);
  }
#pragma unroll 1
  for (int k = 0; k < k_blocks; ++k) {
    at.wait_full();
#pragma unroll
    for (int h = 0; h < active; ++h) {
      float part[kSums], scale[kColScales][2];
      at.template start<a_type, b_type>(h, part, false);
      if constexpr (kScaled) {
#pragma unroll
        for (int i = 0; i < kColScales; ++i) {
          scale[i][0] = scales.of_rows[h][0] * scales.of_cols[i];
          scale[i][1] = scales.of_rows[h][1] * scales.of_cols[i];
        }
      }
      if (h + 1 == active) {
        at.next_stage();
        if constexpr (kScaled) scales.read_next(at, first_run, k + 1, k_blocks);
      }
      wait_products<0>();
      fence_sums(part);
      if (h + 1 == active) at.signal_empty();
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        if constexpr (kScaled) {
          sums[h][i] = fmaf(scale[i / (kSums / kColScales)][i % 4 / 2], part[i], sums[h][i]);
        } else {
          sums[h][i] += part[i];
        }
      }
    }
  }
}

// The same without sums of its own: in the tensor cores throughout, as 16-bit operands allow.
template <int active, DType a_type, DType b_type, typename Shape>
__device__ __forceinline__ void multiply_in_place(
    int k_blocks, Multiplier<Shape>& at, float (&sums)[Shape::kHalves][Shape::kWgCols / 2]) {
#pragma unroll 1
  for (int k = 0; k < k_blocks; ++k) {
    at.wait_full();
#pragma unroll
    for (int h = 0; h < active; ++h) at.template start<a_type, b_type>(h, sums[h], true);
    at.next_stage();
    wait_products<0>();
#pragma unroll
    for (int h = 0; h < active; ++h) fence_sums(sums[h]);
    at.signal_empty();
  }
}

// A tile in which the warpgroup has no rows.
template <ScaleMode mode, typename Shape>
__device__ __forceinline__ void pass_steps(int k_blocks, Multiplier<Shape>& at) {
#pragma unroll 1
  for (int k = 0; k < k_blocks; ++k) {
    if (mode == ScaleMode::kBlocks && k % kScaleSteps == 0) at.wait_scales();
    at.wait_full();
    at.next_stage();
    at.signal_empty();
    const bool ends_slot = k % kScaleSteps + 1 == kScaleSteps || k + 1 == k_blocks;
    if (mode == ScaleMode::kBlocks && ends_slot) at.signal_scales();
  }
}

template <typename Shape, DType a_type, DType b_type, ScaleMode mode>
__device__ void multiply_tiles(const GemmArgs& p, const GemmShared<Shape>& shared, TileWalk walk,
                               int first_tile, int tile_step, int rank) {
  constexpr int kHalves = Shape::kHalves, kCluster = Shape::kCluster;
  Multiplier<Shape> at(shared, p.scale_copy);
  const uint32_t staged = shared_address(shared.out(at.warp));
  for (int tile = first_tile; walk.find(tile); tile += tile_step) {
    const int col = (walk.n_tile * kCluster + rank) * Shape::kCols + at.first_col();
    const int first_run = (col - at.first_col()) % kScaleCols / 64 + at.first_col() / 64;
    float sums[kHalves][Shape::kWgCols / 2];
    int active = 0;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      active += at.first_row(h) < walk.rows;
#pragma unroll
      for (float& sum : sums[h]) sum = 0;
    }
    auto run = [&](auto count) {
      constexpr int kActive = decltype(count)::value;
      if constexpr (kActive == 0) {
        pass_steps<mode>(p.k_blocks, at);
      } else if constexpr (mode == ScaleMode::kNone) {
        multiply_in_place<kActive, a_type, b_type>(p.k_blocks, at, sums);
      } else {
        multiply_steps<kActive, a_type, b_type, mode>(p.k_blocks, first_run, at, sums);
      }
    };
    if (active == kHalves) {
      run(Count<kHalves>());
    } else if (kHalves > 1 && active == 1) {
      run(Count<1>());
    } else {
      run(Count<0>());
    }

    const int64_t z = walk.is_batched() ? walk.group : 0;
    // The copy engine may still read the sums of the tile before.
    wait_stores_read<0>();
    __syncwarp();
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      if (h >= active || col >= p.n) break;
      if constexpr (mode == ScaleMode::kEnd) {
        scale_sums(p, walk, at.thread_row(h), col, at.lane, sums[h]);
      }
      const int first = at.first_row(h) + at.warp % 4 * 16;
      OutTile(p, z, walk.row_first + first, walk.rows - first, col)
          .put(sums[h], staged + h * (Shape::kWarpOutBytes / kHalves), at.lane);
    }
    if (p.signal.data != nullptr) {
      wait_stores<0>();
      __threadfence();
      sync_threads(1, kWarpgroups * 128);
      if (threadIdx.x == 0 && (walk.n_tile * kCluster + rank) * Shape::kCols < p.n) {
        atomicAdd(
            p.signal.data + walk.group * p.signal.per_group + walk.row_in_group / Shape::kRows, 1);
      }
    }
  }
  wait_stores<0>();
}

}  // namespace mate::gpu::sm90a
