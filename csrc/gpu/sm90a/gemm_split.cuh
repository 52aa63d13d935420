// Products of few rows: the blocks of a cluster share a tile, and each multiplies a part of k. So
// all multiprocessors read weights where tiles alone are fewer.
#pragma once

#include "gpu/sm90a/gemm_launch.cuh"

namespace mate::gpu::sm90a {

// 64 or 128 rows of 128 columns.
struct SplitSmallShape : GemmShape<2, 1, 64, true, 1, 8> {
  static constexpr bool kSplits = true;
};
struct SplitShape : GemmShape<2, 1, 128, false, 1, 5> {
  static constexpr bool kSplits = true;
};
static_assert(SplitSmallShape::kBytes <= 227 << 10 && SplitShape::kBytes <= 227 << 10);
static_assert(SplitSmallShape::kCols == kSplitCols && SplitShape::kCols == kSplitCols);

// Where sums meet once products are done: in the stages, of each block its own, four columns of a
// row together and then those of the next row.
template <typename Shape>
struct PartSums {
  static constexpr int kChunk = 8, kChunks = Shape::kCols / kChunk;
  static constexpr int kQuadBytes = 16, kHalfBytes = Shape::kRows * kQuadBytes;
  static_assert(kChunks * 2 * kHalfBytes <= Shape::kStages * Shape::kStageBytes);
  uint32_t base;

  __device__ uint32_t at(int chunk, int row) const {
    return base + chunk * 2 * kHalfBytes + row * kQuadBytes;
  }

  // Of one thread of a warpgroup, as a product leaves them.
  template <int count>
  __device__ void put(const Multiplier<Shape>& from, const float (&sums)[count]) const {
    const uint32_t to = at(from.first_col() / kChunk, from.thread_row(0)) +
                        from.lane % 4 / 2 * kHalfBytes + from.lane % 2 * 8;
#pragma unroll
    for (int i = 0; i < count; i += 2) {
      const int chunk = i / 4, row = i % 4 / 2 * 8;
      store_shared_pair(to + chunk * 2 * kHalfBytes + row * kQuadBytes, sums[i], sums[i + 1]);
    }
  }

  // The sums of the parts of all blocks of the cluster, in their order, for two chunks of a row of
  // which the second one may not be there. All that four blocks have is asked for at once.
  __device__ void get(uint32_t from, uint32_t second, bool has_second, int blocks,
                      float (&sums)[2][kChunk]) const {
    constexpr int kAtOnce = 4;
#pragma unroll
    for (int i = 0; i < 2 * kChunk; ++i) sums[i / kChunk][i % kChunk] = 0;
#pragma unroll 1
    for (int first = 0; first < blocks; first += kAtOnce) {
      float4 part[kAtOnce][4];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const uint32_t remote = address_in(from, min(first + i, blocks - 1));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          part[i][j] = load_remote(remote + j / 2 * (second - from) + j % 2 * kHalfBytes,
                                   first + i < blocks && (j < 2 || has_second));
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float* to = sums[j / 2] + j % 2 * 4;
          to[0] += part[i][j].x, to[1] += part[i][j].y;
          to[2] += part[i][j].z, to[3] += part[i][j].w;
        }
      }
    }
  }
};

template <DType type>
__device__ __forceinline__ uint4 pack_chunk(const float (&x)[8]) {
  return {pack_pair<type>(x[0], x[1]), pack_pair<type>(x[2], x[3]), pack_pair<type>(x[4], x[5]),
          pack_pair<type>(x[6], x[7])};
}

__device__ __forceinline__ void put_chunk(const GemmArgs& p, int64_t group, int64_t row, int col,
                                          const float (&sums)[8]) {
  auto* data = static_cast<char*>(p.out.data) + group * p.out.group_stride * size_of(p.out.type);
  if (p.out.type == DType::kF32) {
    auto* to = reinterpret_cast<float*>(data) + row * p.out.row_stride + col;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (col + i < p.n) to[i] = sums[i];
    }
    return;
  }
  const bool bf16 = p.out.type == DType::kBF16;
  const uint4 bits = bf16 ? pack_chunk<DType::kBF16>(sums) : pack_chunk<DType::kF16>(sums);
  put_part(p, data, row, col, bits, has_aligned_rows(p.out, data));
}

// Each block finishes some columns of the tile: neighbouring threads two chunks of a row.
template <typename Shape>
__device__ __forceinline__ void finish_parts(const GemmArgs& p, const Tile& tile,
                                             PartSums<Shape> parts, int block, int blocks) {
  using All = PartSums<Shape>;
  const int first = All::kChunks * block / blocks, end = All::kChunks * (block + 1) / blocks;
  const int row = threadIdx.x / 2 % Shape::kRows;
  if (row >= tile.rows) return;
  constexpr int kChunksAtOnce = Shape::kWarpgroups * 128 / Shape::kRows;
  for (int chunk = first + threadIdx.x % 2 + threadIdx.x / 2 / Shape::kRows * 2; chunk < end;
       chunk += 2 * kChunksAtOnce) {
    float sums[2][All::kChunk];
    const int second = chunk + kChunksAtOnce;
    parts.get(parts.at(chunk, row), parts.at(second, row), second < end, blocks, sums);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = i == 0 ? chunk : second, col = tile.col + at * All::kChunk;
      if (at < end && col < p.n) put_chunk(p, tile.group, tile.row_first + row, col, sums[i]);
    }
  }
}

// What a block has: a tile and a part of k.
struct Part {
  int group, row_first, rows, n_tile;  // as in TileWalk
  int k_first, k;                      // elements
  int k_blocks;

  __device__ Part(const GemmArgs& p, int tile_rows) : n_tile(blockIdx.z) {
    const int groups = static_cast<int>(p.rows.num_groups), row_tiles = gridDim.y;
    const int row_tile = groups == 1 ? blockIdx.y : blockIdx.y % (row_tiles / groups);
    group = groups == 1 ? 0 : blockIdx.y / (row_tiles / groups);
    row_first = row_tile * tile_rows;
    rows = static_cast<int>(p.rows.rows) - row_first;
    // Whole slots of scales.
    const unsigned slots = (p.k_blocks + kScaleSteps - 1) / kScaleSteps;
    const int each = slots / gridDim.x, more = slots - each * gridDim.x, block = blockIdx.x;
    const int first = (block * each + min(block, more)) * kScaleSteps;
    k_blocks = min((each + (block < more)) * kScaleSteps, p.k_blocks - first);
    k_first = first * kScaleBlock, k = k_blocks * kScaleBlock;
  }

  __device__ bool find(int tile) const { return tile == 0; }
  __device__ int plane() const { return group; }
  __device__ int b_plane() const { return group; }
};

// Copies a block's part of one operand, a box a step. What a thread has to do for a box takes
// longer than a step of a small tile has, so that each operand has a thread of its own.
template <typename Shape>
class PartCopy {
 public:
  __device__ PartCopy(const GemmShared<Shape>& shared, const CUtensorMap* map, int offset,
                      int bytes, int row, const Part& part)
      : shared_(shared), map_(map), offset_(offset), bytes_(bytes), row_(row), part_(part) {}

  __device__ __forceinline__ void run(int end) {
    for (; k_ < end; ++k_, ring_.next()) {
      wait(shared_.empty(ring_.stage), ring_.phase ^ 1);
      arrive_expecting(shared_.full(ring_.stage), bytes_);
      load_box(shared_.a(ring_.stage) + offset_, map_, shared_.full(ring_.stage),
               part_.k_first + k_ * kStepBytes, row_, part_.group, kEvictNormal);
    }
  }

 private:
  const GemmShared<Shape>& shared_;
  const CUtensorMap* map_;
  int offset_, bytes_, row_, k_ = 0;
  const Part& part_;
  Ring<Shape::kStages> ring_;
};

// A tile for each cluster.
template <typename Shape, DType a_type, DType b_type>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    split_kernel(const __grid_constant__ GemmArgs p) {
  constexpr int kWarpgroups = Shape::kWarpgroups, kCount = Shape::kWgCols / 2;
  constexpr ScaleMode kMode = ScaleMode::kBlocks;
  extern __shared__ __align__(1024) char memory[];
  const GemmShared<Shape> shared{memory};
  const Part part(p, Shape::kRows);
  const int col = part.n_tile * Shape::kCols, blocks = gridDim.x;
  PartCopy<Shape> copy_b(shared, &p.b, Shape::kABytes, Shape::kBBytes, col, part);
  constexpr int kFirstThread = kWarpgroups * 128;
  if (threadIdx.x == kFirstThread) {
    init_barriers(p, shared, 2);
    // Memory takes longest to answer. More steps would hold up the block: the engine takes few.
    copy_b.run(1);
  }
  __syncthreads();

  const PartSums<Shape> parts{shared_address(memory)};
  if (threadIdx.x >= kFirstThread) {
    fewer_registers<Shape::kProducerRegisters>();
    const int warp = threadIdx.x / 32 - kWarpgroups * 4;
    const bool leads = threadIdx.x % 32 == 0;
    if (warp == 0 && leads) copy_b.run(part.k_blocks);
    if (warp == 1 && leads) {
      PartCopy<Shape>(shared, &p.a, 0, p.a_box_rows * kStepBytes, part.row_first, part)
          .run(part.k_blocks);
    }
    if (warp == 2) {
      if (p.scale_copy == ScaleCopy::kWords) {
        copy_scale_words(p, shared, part, 0, 1, 0);
      } else if (leads) {
        copy_scale_boxes(p, shared, part, 0, 1, 0);
      }
    }
    if (blocks == 1) return;
    __syncwarp();
    sync_cluster();
  } else {
    more_registers<Shape::kConsumerRegisters>();
    Multiplier<Shape> at(shared, p.scale_copy);
    const Tile tile{part.group, part.row_first, part.rows, col};
    float sums[1][kCount] = {};
    auto nothing = [](auto...) {};
    if (at.first_row(0) < tile.rows) {
      multiply_steps<1, a_type, b_type, kMode>(part.k_blocks, at.first_col() / 64, at, sums,
                                               nothing, nothing);
    } else {
      pass_steps<kMode>(part.k_blocks, at);
    }
    if (blocks == 1) {
      const int first = at.first_row(0) + at.warp % 4 * 16;
      const uint32_t staged =
          shared_address(shared.out(at.wg, 0)) + at.warp % 4 * OutStage::kWarpBytes;
      const OutTile<kCount> out{p, tile.group, tile.row_first + first, tile.rows - first,
                                col + at.first_col()};
      out.stage(sums[0], staged, at.lane);
      __syncwarp();
      out.store(staged, at.lane);
      return;
    }
    // The other warpgroups still multiply from the stages.
    sync_threads(1, kWarpgroups * 128);
    parts.put(at, sums[0]);
    sync_cluster();
    finish_parts(p, tile, parts, blockIdx.x, blocks);
    __syncwarp();
  }
  // No block may leave while another one reads its part.
  sync_cluster();
}

}  // namespace mate::gpu::sm90a
