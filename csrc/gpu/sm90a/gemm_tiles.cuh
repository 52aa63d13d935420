// Which tile of which group a block works on, found on the device from Rows.
#pragma once

#include "gpu/sm90a/gemm_args.h"

namespace mate::gpu::sm90a {

// Stands for scales that are not there, with strides of 0.
__device__ const float kOne = 1.0f;

// Rows of each group (kRaggedK: its steps along k) and its first tile, in shared memory. Not used
// by kBatched.
struct GroupTable {
  int* first;  // [num_groups] first row
  int* count;  // [num_groups]
  int* tile;   // [num_groups + 1] row tiles before a group

  static int bytes(const Rows& rows) {
    return rows.mode == RowMode::kBatched ? 0 : static_cast<int>(3 * rows.num_groups + 1) * 4;
  }

  __device__ GroupTable(void* memory, const Rows& rows)
      : first(static_cast<int*>(memory)),
        count(first + rows.num_groups),
        tile(count + rows.num_groups) {}
};

__device__ inline int clamp_rows(int64_t value, int64_t rows) {
  return static_cast<int>(value < 0 ? 0 : value > rows ? rows : value);
}

// Rows of an expert follow one another and start at a multiple of the alignment.
__device__ inline void find_runs(const GroupTable& table, const Rows& rows) {
  const int groups = static_cast<int>(rows.num_groups);
  auto group_at = [&](int64_t row) -> int {
    if (row < 0 || row >= rows.rows) return -1;
    const int group = rows.info[row * rows.info_stride];
    return group < groups ? group : -1;
  };
  for (int g = threadIdx.x; g < groups; g += blockDim.x) table.first[g] = table.count[g] = 0;
  __syncthreads();
  const int64_t blocks = (rows.rows + rows.alignment - 1) / rows.alignment;
  for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x) {
    const int64_t row = i * rows.alignment;
    const int group = group_at(row);
    if (group < 0) continue;
    if (group != group_at(row - rows.alignment)) table.first[group] = static_cast<int>(row);
    // For now the start of the last block.
    if (group != group_at(row + rows.alignment)) table.count[group] = static_cast<int>(row) + 1;
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int g = threadIdx.x / 32; g < groups; g += blockDim.x / 32) {
    if (table.count[g] == 0) continue;
    const int64_t last = table.count[g] - 1;
    int inside = 0;
    for (int64_t i = lane; i < rows.alignment; i += 32) inside += group_at(last + i) == g;
    inside = __reduce_add_sync(~0u, inside);
    __syncwarp();
    if (lane == 0) table.count[g] = max(0, static_cast<int>(last) + inside - table.first[g]);
  }
}

// All threads of the block; tile_rows is the height of a tile.
__device__ inline void fill_table(const GroupTable& table, const Rows& rows, int tile_rows) {
  const int groups = static_cast<int>(rows.num_groups);
  if (rows.mode == RowMode::kBatched) return;
  if (rows.mode == RowMode::kPerToken) {
    find_runs(table, rows);
  } else {
    for (int g = threadIdx.x; g < groups; g += blockDim.x) {
      table.count[g] = clamp_rows(rows.info[g * rows.info_stride], rows.rows);
      table.first[g] = 0;
    }
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
  int end = 0, tiles = 0;  // of all groups so far
  for (int base = 0; base < groups; base += 32) {
    const int g = base + lane;
    int value = g < groups ? table.count[g] : 0, first = 0;
    if (rows.mode == RowMode::kPsum) {
      // Ends that fall count as the largest so far.
      int most = g < groups ? value : 0;
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, most, step);
        if (lane >= step) most = max(most, other);
      }
      most = max(most, end);
      int before = __shfl_up_sync(~0u, most, 1);
      if (lane == 0) before = end;
      const int align = static_cast<int>(rows.alignment);
      first = (before + align - 1) / align * align;
      value = max(0, most - first);
      end = __shfl_sync(~0u, most, 31);
    } else if (rows.mode == RowMode::kPerExpert) {
      int64_t sum = value;
      for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
      }
      const int64_t last = end + sum, before = last - value;
      first = clamp_rows(before, rows.rows);
      value = clamp_rows(last, rows.rows) - first;
      end = clamp_rows(__shfl_sync(~0u, last, 31), rows.rows);
    } else if (g < groups) {
      first = table.first[g];
    }
    int own = (value + tile_rows - 1) / tile_rows, sum = own;
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    if (g < groups) {
      table.first[g] = first;
      table.count[g] = value;
      table.tile[g] = tiles + sum - own;
    }
    tiles += __shfl_sync(~0u, sum, 31);
  }
  if (lane == 0) table.tile[groups] = tiles;
}

// x / d: a division of integers would cost as much as half a step of a tile.
__device__ __forceinline__ uint32_t divide(uint32_t x, uint32_t d, uint32_t inverse) {
  if (d == 1) return x;
  const uint32_t q = __umulhi(x, inverse);
  return q * d > x ? q - 1 : q;
}

// What the copying warp tells the multiplying ones of a tile.
struct alignas(16) Tile {
  int group, row_first;
  int rows;  // of the group from the tile on; negative where there is no tile any more
  int col;
};

// Goes through tiles of a cluster in ascending order, in bands of rows, which keep what blocks read
// at a time in the second-level cache. ragged_k: rows may be those of kRaggedK too.
template <bool ragged_k>
class TileWalk {
 public:
  int group = 0;
  int row_first, rows;  // as in Tile
  int row_in_group;
  int n_tile;
  int k_first = 0, k = 0;  // of the group, where kRaggedK

  __device__ TileWalk(const GroupTable& table, const Rows& rows, int tile_rows,
                      const Tiling& tiling)
      : table_(table), all_(rows), tiling_(tiling), tile_rows_(tile_rows) {}

  __device__ bool find(int tile) {
    const bool batched = all_.mode == RowMode::kBatched;
    const int groups = static_cast<int>(all_.num_groups), n_tiles = tiling_.n_tiles;
    int before = 0, m_tiles;
    if (batched) {
      m_tiles = (static_cast<int>(all_.rows) + tile_rows_ - 1) / tile_rows_;
      const int each = m_tiles * n_tiles;
      group = groups == 1 ? tile >= each : tile / max(each, 1);
      if (each == 0 || group >= groups) return false;
      before = group * m_tiles;
    } else {
      while (group < groups && tile >= table_.tile[group + 1] * n_tiles) ++group;
      if (group == groups) return false;
      before = table_.tile[group];
      m_tiles = table_.tile[group + 1] - before;
    }
    const int local = tile - before * n_tiles, band_tiles = tiling_.band * n_tiles;
    const int band = divide(local, band_tiles, tiling_.band_tiles_inverse);
    const int in_band = local - band * band_tiles, first_tile = band * tiling_.band;
    const int height = min(tiling_.band, m_tiles - first_tile);
    n_tile =
        divide(in_band, height, height == tiling_.band ? tiling_.band_inverse : inverse_of(height));
    row_in_group = (first_tile + in_band - n_tile * height) * tile_rows_;
    const int count = batched ? static_cast<int>(all_.rows) : table_.count[group];
    row_first = row_in_group + (batched ? 0 : table_.first[group]);
    rows = count - row_in_group;
    if constexpr (ragged_k) {
      if (is_by_k()) take_k();
    }
    return true;
  }

  // Matrices of A and its scales, of B and its scales, and of the output.
  __device__ int plane() const { return is_batched(all_) ? group : 0; }
  __device__ int b_plane() const { return is_by_k() ? 0 : group; }
  __device__ int out_plane() const { return is_by_k() ? group : plane(); }

 private:
  __device__ bool is_by_k() const { return ragged_k && all_.mode == RowMode::kRaggedK; }

  // A group of kRaggedK has all rows; the table tells what it has of k.
  __device__ void take_k() {
    k_first = table_.first[group], k = table_.count[group];
    row_first = row_in_group;
    rows = static_cast<int>(all_.rows) - row_in_group;
  }

  GroupTable table_;
  const Rows& all_;
  const Tiling& tiling_;
  int tile_rows_;
};

}  // namespace mate::gpu::sm90a
