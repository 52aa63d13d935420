// What multiplies tiles in shared memory. Sums of 128 products leave the tensor cores for float32
// registers, where scales come in (two-level accumulation, as DeepSeek-V3's report describes it in
// section 3.3.2).
#pragma once

#include <type_traits>

#include "gpu/sm90a/gemm_args.h"
#include "gpu/sm90a/gemm_finish.cuh"
#include "gpu/sm90a/gemm_ragged_k.cuh"
#include "gpu/sm90a/gemm_shape.cuh"
#include "gpu/sm90a/gemm_tiles.cuh"
#include "gpu/sm90a/gemm_turned.cuh"
#include "gpu/sm90a/wgmma.cuh"

namespace mate::gpu::sm90a {

// Scales that do not depend on k; those of B may be by column. row: of the tile.
template <int count>
__device__ __forceinline__ void scale_sums(const GemmArgs& p, const Tile& tile, int row, int col,
                                           int lane, float (&sums)[count]) {
  const Scales &a = p.a_scale, &b = p.b_scale;
  float of_rows[2] = {1.0f, 1.0f};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (a.data == nullptr) break;
    // Rows of no token take the scale of one that is there.
    of_rows[r] = a.data[(is_batched(p.rows) ? tile.group : 0) * a.group_stride +
                        (tile.row_first + min(row + 8 * r, tile.rows - 1)) * a.row_stride];
  }
  const float* of_group = b.data == nullptr ? nullptr : b.data + tile.group * b.group_stride;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    // Few loads at a time: the sums leave few registers.
    if (i % 16 == 0) asm volatile("" ::: "memory");
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

__device__ __forceinline__ Tile load_tile(uint32_t from) {
  Tile t;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(t.group), "=r"(t.row_first), "=r"(t.rows), "=r"(t.col)
               : "r"(from)
               : "memory");
  return t;
}

// Scales of a step, which are read from shared memory a step ahead: a wait between two products
// would be one of the tensor cores.
template <typename Shape, int active>
struct StepScales {
  float of_rows[active][2], of_cols[Shape::kWgColScales];
};

// Where a thread of a multiplying warpgroup stands: in a tile, in the ring of stages, and in that
// of scales.
template <typename Shape>
class Multiplier {
 public:
  static constexpr int kHalves = Shape::kHalves, kSums = Shape::kWgCols / 2;

  int wg, warp, lane;

  __device__ Multiplier(const GemmShared<Shape>& shared, ScaleCopy scale_copy)
      : wg(uniform(threadIdx.x / 128)),
        warp(uniform(threadIdx.x / 32)),
        lane(kept(threadIdx.x % 32)) {
    const uint32_t base = shared_address(shared.base);
    const uint32_t a = base + first_row(0) * kStepBytes;
    const uint32_t b = base + Shape::kABytes + first_col() * kStepBytes;
    a_first_ = uniform(Shape::kTurnedA ? turned_descriptor_low(a) : descriptor_low(a));
    b_first_ = uniform(Shape::kTurnedB ? turned_descriptor_low(b) : descriptor_low(b));
    full_ = shared_address(shared.full(0));
    tiles_ = shared_address(shared.tile(0));
    empty_ = shared_address(shared.empty(0));
    if (Shape::kCluster > 1) empty_ = address_in(empty_, lane % Shape::kCluster);
    const bool along_rows = scale_copy == ScaleCopy::kBoxesAlongRows;
    row_bytes_ = along_rows ? 4 : kScaleSteps * 4;
    step_bytes_ = along_rows ? Shape::kRows * 4 : 4;
    row_scales_ = shared_address(shared.scales(0)) + thread_row(0) * row_bytes_;
    col_scales_ = kept(shared_address(shared.scales(0)) + Shape::kRowScaleBytes) + lane / 32;
    if constexpr (Shape::kColumnScales) col_scales_ += (first_col() + lane % 4 * 2) * 4;
    scales_full_ = shared_address(shared.scales_full(0));
    scales_empty_ = shared_address(shared.scales_empty(0));
  }

  __device__ int first_row(int half) const { return Shape::first_row(wg, half); }
  __device__ int first_col() const { return Shape::first_col(wg); }
  __device__ int thread_row(int half) const { return first_row(half) + warp % 4 * 16 + lane / 4; }

  // The tile whose first step is next. All lanes have it before the warp's next products, after
  // which one of them gives the stage back; where that one alone reads, racecheck sees the order
  // too (shapes of clusters have no registers for it).
  __device__ __forceinline__ Tile next_tile() const {
    wait_full();
    const uint32_t from = tiles_ + ring_.stage * sizeof(Tile);
    if (Shape::kCluster > 1) return load_tile(from);
    Tile tile{};
    if (lane == 0) tile = load_tile(from);
    auto told = [](int x) { return __shfl_sync(~0u, x, 0); };
    return {told(tile.group), told(tile.row_first), told(tile.rows), told(tile.col)};
  }
  __device__ __forceinline__ void wait_full() const {
    wait_at(full_ + ring_.stage * 8, ring_.phase);
  }
  __device__ __forceinline__ void next_stage() {
    used_ = ring_.stage;
    ring_.next();
  }
  // Gives the stage back from which the last products came, or an earlier one.
  __device__ __forceinline__ void signal_empty() const { release(used_); }
  __device__ __forceinline__ void release(int stage) const {
    if (Shape::kCluster == 1) {
      if (lane == 0) arrive_at(empty_ + stage * 8);
    } else {
      if (lane < Shape::kCluster) arrive_remote(empty_ + stage * 8);
    }
  }
  __device__ __forceinline__ int stage() const { return ring_.stage; }
  __device__ __forceinline__ int used() const { return used_; }

  // Waits for the scales of the next steps, which read_scales takes one by one.
  __device__ __forceinline__ void enter_slot() {
    wait_at(scales_full_ + slots_.stage * 8, slots_.phase);
    row_at_ = row_scales_ + slots_.stage * Shape::kSlotBytes;
    col_at_ = col_scales_ + slots_.stage * Shape::kSlotBytes;
  }
  __device__ __forceinline__ void leave_slot() {
    if (lane == 0) arrive_at(scales_empty_ + slots_.stage * 8);
    slots_.next();
  }
  // first_run: number of 64 columns from the start of the tile's first block.
  template <int active>
  __device__ __forceinline__ void read_scales(int first_run, StepScales<Shape, active>& to) {
    constexpr int kRuns = Shape::kWgCols / Shape::kWgColScales / 64;
#pragma unroll
    for (int i = 0; i < Shape::kWgColScales; ++i) {
      const int block = (first_run + i * kRuns) / (kScaleCols / 64);
      to.of_cols[i] = load_shared(col_at_ + block * (kScaleSteps * 4));
    }
#pragma unroll
    for (int h = 0; h < active; ++h) {
      const uint32_t row = row_at_ + (first_row(h) - first_row(0)) * row_bytes_;
      to.of_rows[h][0] = load_shared(row);
      to.of_rows[h][1] = load_shared(row + 8 * row_bytes_);
    }
    next_scales();
  }
  // Where columns have scales of their own: those of rows thread_row(0) and 8 further, and of
  // columns 8 j + 2 (lane % 4) and the next, until next_scales.
  __device__ __forceinline__ float row_scale(int r) const {
    return load_shared(row_at_ + r * row_bytes_);
  }
  __device__ __forceinline__ float2 col_scale_pair(int j) const {
    return load_shared_pair(col_at_ + j * 32);
  }
  __device__ __forceinline__ void next_scales() {
    row_at_ += step_bytes_;
    col_at_ += Shape::kColumnScales ? Shape::kCols * 4 : 4;
  }

  // Clears what lies past `left` steps along k of the stage at hand, of all that `active` blocks of
  // rows are multiplied with. base: of shared memory.
  __device__ __forceinline__ void clear_past(int left, int active, uint32_t base) const {
    const uint32_t stage = base + ring_.stage * Shape::kStageBytes;
    for (int h = 0; h < active; ++h) clear_steps(stage + first_row(h) * kStepBytes, left);
    for (int i = 0; i < Shape::kWgCols / kPlaneRows; ++i) {
      clear_steps(stage + Shape::kABytes + first_col() * kStepBytes + i * kPlaneBytes, left);
    }
    clear_done(wg);
  }

  template <DType a_type, DType b_type>
  __device__ __forceinline__ void start(int half, float (&sums)[kSums], bool adds) const {
    constexpr uint32_t kHalf =
        (Shape::kSideBySide ? 64 : Shape::kWarpgroups * 64) * kStepBytes / 16;
    const uint32_t stage = ring_.stage * (Shape::kStageBytes / 16);
    const uint32_t a = a_first_ + stage + half * kHalf, b = b_first_ + stage;
    fence_sums(sums);
    if constexpr (Shape::kTurnedB) {
      multiply_turned<a_type, Shape::kWgCols, Shape::kTurnedA>(sums, descriptor_at(a),
                                                               descriptor_at(b), adds);
    } else {
      multiply_128<a_type, b_type, Shape::kWgCols>(sums, descriptor_at(a), descriptor_at(b), adds);
    }
    fence_sums(sums);
  }

 private:
  uint32_t a_first_, b_first_;  // descriptors of what the warpgroup multiplies, in the first stage
  uint32_t full_, tiles_;       // barriers and tiles of the first stage
  uint32_t empty_;              // those that this lane signals to, in its block of the cluster
  uint32_t row_scales_, col_scales_, scales_full_, scales_empty_;  // of the first slot
  uint32_t row_bytes_, step_bytes_;                                // from scale to scale of A
  uint32_t row_at_ = 0, col_at_ = 0;                               // the next step's scales
  Ring<Shape::kStages> ring_;
  Ring<kScaleSlots> slots_;
  int used_ = 0;
};

// All steps along k of one tile, of which `active` blocks of rows are this warpgroup's. Between the
// end of products and the start of the next ones is nothing but the sums; the rest is done while
// products run, and must not take longer than they do: begin() beside the first ones, and finish(h)
// for a block whose sums are complete, but the last one. kEnd has no registers for the latter.
template <int active, DType a_type, DType b_type, ScaleMode mode, typename Shape, typename Begin,
          typename Finish>
__device__ __forceinline__ void multiply_steps(int k_blocks, int first_run, Multiplier<Shape>& at,
                                               float (&sums)[Shape::kHalves][Shape::kWgCols / 2],
                                               Begin&& begin, Finish&& finish) {
  constexpr bool kScaled = mode == ScaleMode::kBlocks;
  constexpr int kSums = Shape::kWgCols / 2, kColScales = Shape::kWgColScales;
  StepScales<Shape, active> scales;
  // ends: the last step of a slot of scales. last: of the tile.
  auto step = [&](auto ends, auto last, bool first = false) {
    at.wait_full();
#pragma unroll
    for (int h = 0; h < active; ++h) {
      float part[kSums];
      [[maybe_unused]] float scale[kColScales][2];
      at.template start<a_type, b_type>(h, part, false);
      if (h == 0 && first) begin();
      if constexpr (kScaled) {
#pragma unroll
        for (int i = 0; i < kColScales; ++i) {
          scale[i][0] = scales.of_rows[h][0] * scales.of_cols[i];
          scale[i][1] = scales.of_rows[h][1] * scales.of_cols[i];
        }
      }
      if constexpr (last.value && kScaled) {
        if (h > 0) finish(h - 1);
      }
      if (h + 1 == active) {
        at.next_stage();
        if constexpr (kScaled) {
          if constexpr (ends.value) at.leave_slot();
          if constexpr (ends.value && !last.value) at.enter_slot();
          if constexpr (!last.value) at.read_scales(first_run, scales);
        }
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
  };
  if constexpr (kScaled) {
    at.enter_slot();
    at.read_scales(first_run, scales);
  }
  constexpr std::false_type kNo;
  constexpr std::true_type kYes;
  // Whole slots without a branch inside, so that the compiler asks for the next stage amid the
  // sums.
  int k = 0;
  if (!kScaled || k_blocks <= kScaleSteps) begin();
#pragma unroll 1
  for (; kScaled && k + kScaleSteps < k_blocks; k += kScaleSteps) {
    step(kNo, kNo, k == 0);
#pragma unroll
    for (int i = 1; i + 1 < kScaleSteps; ++i) step(kNo, kNo);
    step(kYes, kNo);
  }
#pragma unroll 1
  for (; k + 1 < k_blocks; ++k) step(kNo, kNo);
  step(kYes, kYes);
}

// The same without sums of its own: in the tensor cores throughout, as 16-bit operands allow.
// enter(k) is called when step k has arrived.
template <int active, DType a_type, DType b_type, typename Shape, typename Enter>
__device__ __forceinline__ void multiply_in_place(int k_blocks, Multiplier<Shape>& at,
                                                  float (&sums)[Shape::kHalves][Shape::kWgCols / 2],
                                                  Enter&& enter) {
#pragma unroll 1
  for (int k = 0; k < k_blocks; ++k) {
    at.wait_full();
    enter(k);
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
    if (by_blocks(mode) && k % kScaleSteps == 0) at.enter_slot();
    at.wait_full();
    at.next_stage();
    at.signal_empty();
    const bool ends_slot = k % kScaleSteps + 1 == kScaleSteps || k + 1 == k_blocks;
    if (by_blocks(mode) && ends_slot) at.leave_slot();
  }
}

template <int active, DType type, DType code_type, typename Shape>
__device__ __forceinline__ void multiply_widened(const GemmArgs& p, const Tile& tile, int col,
                                                 Multiplier<Shape>& at, uint32_t base,
                                                 float (&sums)[Shape::kWgCols / 2]);
template <DType a_type, DType b_type, typename Shape, typename Begin>
__device__ __forceinline__ void multiply_columns(int k_blocks, Multiplier<Shape>& at,
                                                 float (&sums)[Shape::kWgCols / 2], Begin&& begin);

template <typename Shape, DType a_type, DType b_type, ScaleMode mode>
__device__ void multiply_tiles(const GemmArgs& p, const GemmShared<Shape>& shared) {
  constexpr int kHalves = Shape::kHalves, kCount = Shape::kWgCols / 2;
  using Out = std::conditional_t<Shape::kFinishes, FinishedTile<kCount>, OutTile<kCount>>;
  Multiplier<Shape> at(shared, p.scale_copy);
  const uint32_t staged = shared_address(shared.out(at.wg, 0)) + at.warp % 4 * OutStage::kWarpBytes;
  uint32_t out_phase = 0;
  // Gives what is staged to the warp that stores. A fence takes long; products hide it.
  bool staged_tile = false;
  auto publish = [&] {
    if (!staged_tile) return;
    fence_shared();
    if (p.signal.data != nullptr) __threadfence();
    __syncwarp();
    if (at.lane == 0) arrive(shared.out_full(at.wg));
    staged_tile = false;
  };
  for (;;) {
    const Tile tile = at.next_tile();
    if (tile.rows < 0) break;
    const int col = tile.col + at.first_col();
    const int first_run = tile.col % kScaleCols / 64 + at.first_col() / 64;
    const int group_k =
        is_by_k<Shape>(p) ? GroupTable(shared.table(), p.rows).count[tile.group] : 0;
    float sums[kHalves][kCount];
    int active = 0;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      active += at.first_row(h) < tile.rows;
#pragma unroll
      for (float& sum : sums[h]) sum = 0;
    }
    auto out_tile = [&](int h) {
      const int first = at.first_row(h) + at.warp % 4 * 16;
      return Out{p, is_by_k<Shape>(p) || is_batched(p.rows) ? tile.group : 0,
                 tile.row_first + first, tile.rows - first, col};
    };
    auto stage_of = [&](int h) { return staged + h * Shape::kOutParts * OutStage::kBytes; };
    auto finish = [&](int h) {
      if (h == 0 && p.has_storer()) wait(shared.out_empty(at.wg), out_phase ^ 1);
      if constexpr (mode == ScaleMode::kEnd) {
        scale_sums(p, tile, at.thread_row(h), col, at.lane, sums[h]);
      }
      if (col < p.n) out_tile(h).stage(sums[h], stage_of(h), at.lane);
    };
    auto store = [&](auto count) {
      __syncwarp();
#pragma unroll
      for (int h = 0; h < count.value; ++h) {
        const bool boxed = p.out_boxes && tile.rows >= at.first_row(h) + OutStage::kRows;
        if (!boxed && col < p.n) out_tile(h).store(stage_of(h), at.lane);
      }
      if (p.has_storer()) {
        staged_tile = true;
        out_phase ^= 1;
      }
    };
    auto run = [&](auto count) {
      constexpr int kActive = decltype(count)::value;
      if constexpr (Shape::kWidens) {
        publish();
        multiply_widened<kActive, a_type, b_type>(p, tile, col, at, shared_address(shared.base),
                                                  sums[0]);
        if constexpr (kActive > 0) {
          finish(0);
        } else if (p.has_storer()) {
          wait(shared.out_empty(at.wg), out_phase ^ 1);
        }
        store(count);
      } else if constexpr (kActive == 0) {
        publish();
        pass_steps<mode>(k_blocks_of<Shape>(p, group_k), at);
        if (p.has_storer()) wait(shared.out_empty(at.wg), out_phase ^ 1);
        store(count);
      } else if constexpr (mode == ScaleMode::kNone) {
        publish();
        const int k_blocks = k_blocks_of<Shape>(p, group_k);
        const int tail = group_k % kPlaneSteps;
        multiply_in_place<kActive, a_type, b_type>(k_blocks, at, sums, [&](int k) {
          if (!Shape::kTurnedA || tail == 0 || k + 1 < k_blocks) return;
          at.clear_past(tail, kActive, shared_address(shared.base));
        });
#pragma unroll
        for (int h = 0; h < kActive; ++h) finish(h);
        store(count);
      } else if constexpr (mode == ScaleMode::kColumns) {
        multiply_columns<a_type, b_type>(k_blocks_of<Shape>(p, group_k), at, sums[0], publish);
        finish(0);
        store(count);
      } else {
        multiply_steps<kActive, a_type, b_type, mode>(p.k_blocks, first_run, at, sums, publish,
                                                      finish);
        constexpr bool kScaled = mode == ScaleMode::kBlocks;
#pragma unroll
        for (int h = kScaled ? kActive - 1 : 0; h < kActive; ++h) finish(h);
        store(count);
      }
    };
    if (active == kHalves) {
      run(Count<kHalves>());
    } else if (kHalves > 1 && active == 1) {
      run(Count<1>());
    } else {
      run(Count<0>());
    }
  }
  publish();
}

}  // namespace mate::gpu::sm90a
