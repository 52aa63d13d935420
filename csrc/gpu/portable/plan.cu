#include <algorithm>

#include "gpu/launch_kernel.h"
#include "gpu/portable/plan.h"
#include "gpu/portable/running.cuh"

namespace mate::gpu::portable {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kScaleBlock = 128;  // of k, in kRaggedK

__device__ int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// One block; the numbers of a group depend on those of all groups before it.
__global__ void __launch_bounds__(kThreads)
    plan_groups(Rows rows, int64_t k, int64_t scale_blocks, int64_t tile_rows, int64_t* tile_first,
                GroupRows* groups) {
  Running<Larger> ends;
  Running<Sum> lengths, blocks, tiles;
  for (int64_t base = 0; base < rows.num_groups; base += kThreads) {
    const int64_t g = base + threadIdx.x;
    const bool exists = g < rows.num_groups;
    const int64_t value = exists ? rows.info[g * rows.info_stride] : 0;
    const int64_t length = value > 0 ? value : 0;
    GroupRows group{0, 0, 0, k, 0};
    if (rows.mode == RowMode::kPsum) {
      const int64_t end = clamp(ends.before(length), 0, rows.rows);
      group.first = ceil_div(end, rows.alignment) * rows.alignment;
      group.count = clamp(value, end, rows.rows) - group.first;
    } else if (rows.mode == RowMode::kRaggedK) {
      group.k_first = lengths.before(length);
      group.k_block_first = blocks.before(ceil_div(length, kScaleBlock));
      const int64_t room = (scale_blocks - group.k_block_first) * kScaleBlock;
      group.k = clamp(k - group.k_first < room ? k - group.k_first : room, 0, length);
      group.count = group.k > 0 ? rows.rows : 0;
    } else if (rows.mode == RowMode::kMasked) {
      group.count = clamp(value, 0, rows.rows);
    } else {
      group.first = clamp(lengths.before(length), 0, rows.rows);
      group.count = clamp(length, 0, rows.rows - group.first);
    }
    if (!exists || group.count < 0) group.count = 0;
    const int64_t first = tiles.before(ceil_div(group.count, tile_rows));
    if (exists) {
      groups[g] = group;
      tile_first[g] = first;
    }
  }
  if (threadIdx.x == 0) tile_first[rows.num_groups] = tiles.all();
}

// Group of row r, or -1.
__device__ int32_t group_of(const Rows& rows, int64_t r) {
  const int32_t group = r < rows.rows ? rows.info[r * rows.info_stride] : -1;
  return group >= 0 && group < rows.num_groups ? group : -1;
}

// Calls f(group, threads of the warp in it, whether this thread is their first) for each group
// among a warp's: neighbours mostly share one, and one access to a counter then serves them all.
template <typename F>
__device__ void each_group(int32_t group, const F& f) {
  const int lane = threadIdx.x % kWarp;
  unsigned left = __ballot_sync(kAllLanes, group >= 0);
  while (left != 0) {
    const int first = __ffs(static_cast<int>(left)) - 1;
    const int32_t theirs = __shfl_sync(kAllLanes, group, first);
    const unsigned same = __ballot_sync(kAllLanes, group == theirs);
    f(theirs, same, lane == first);
    left &= ~same;
  }
}

__global__ void __launch_bounds__(kThreads) count_rows(Rows rows, int32_t* counts) {
  for (int64_t base = blockIdx.x * static_cast<int64_t>(kThreads); base < rows.rows;
       base += static_cast<int64_t>(gridDim.x) * kThreads) {
    each_group(group_of(rows, base + threadIdx.x), [&](int32_t group, unsigned same, bool leads) {
      if (leads) atomicAdd(counts + group, __popc(same));
    });
  }
}

// The order within a group is that of arrival: each row's results are the same in any.
__global__ void __launch_bounds__(kThreads)
    sort_rows(Rows rows, const GroupRows* groups, int32_t* taken, int32_t* sorted) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t base = blockIdx.x * static_cast<int64_t>(kThreads); base < rows.rows;
       base += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t r = base + threadIdx.x;
    const int32_t mine = group_of(rows, r);
    each_group(mine, [&](int32_t group, unsigned same, bool leads) {
      int32_t at = leads ? atomicAdd(taken + group, __popc(same)) : 0;
      at = __shfl_sync(kAllLanes, at, __ffs(static_cast<int>(same)) - 1);
      if (mine == group) {
        sorted[groups[group].first + at + __popc(same & ((1u << lane) - 1))] =
            static_cast<int32_t>(r);
      }
    });
  }
}

template <typename T>
constexpr int64_t size() {
  return static_cast<int64_t>(sizeof(T));
}

}  // namespace

PlanMemory::PlanMemory(const Gemm& p, int64_t tile_rows, const Launch& launch) : plan_{} {
  const Rows& rows = p.rows;
  const int64_t whole_tiles = ceil_div(rows.rows, tile_rows);
  plan_.num_groups = rows.num_groups;
  plan_.whole = {0, rows.rows, 0, p.k, 0};
  plan_.whole_tiles = whole_tiles;
  plan_.most_tiles = rows.num_groups * whole_tiles;
  if (rows.mode == RowMode::kBatched) return;

  const bool sorts = rows.mode == RowMode::kPerToken;
  if (sorts || rows.mode == RowMode::kPsum || rows.mode == RowMode::kPerExpert) {
    plan_.most_tiles = std::min(plan_.most_tiles, whole_tiles + rows.num_groups);
  }
  const int64_t count = rows.num_groups;
  const int64_t ends = (count + 1) * size<int64_t>(), groups_bytes = count * size<GroupRows>();
  const int64_t counts_bytes = sorts ? 2 * count * size<int32_t>() : 0;
  const int64_t rows_bytes = sorts ? rows.rows * size<int32_t>() : 0;
  memory_.emplace(ends + groups_bytes + counts_bytes + rows_bytes, launch);
  auto* tile_first = memory_->at<int64_t>();
  auto* groups = memory_->at<GroupRows>(ends);
  auto* counts = memory_->at<int32_t>(ends + groups_bytes);
  auto* sorted = counts + 2 * count;
  plan_.tile_first = tile_first;
  plan_.groups = groups;

  Rows counted = rows;
  const int64_t blocks = std::min<int64_t>(ceil_div(rows.rows, kThreads), 4L * launch.num_sms);
  if (sorts) {
    plan_.sorted_rows = sorted;
    fill_bytes(counts, 0, counts_bytes, launch, "counts of groups");
    launch_kernel("count_rows", count_rows, {blocks, kThreads}, launch, rows, counts);
    counted.mode = RowMode::kPerExpert;
    counted.info = counts;
    counted.info_stride = 1;
  }
  launch_kernel("plan_groups", plan_groups, {1, kThreads}, launch, counted, p.k, p.scale_blocks,
                tile_rows, tile_first, groups);
  if (sorts) {
    launch_kernel("sort_rows", sort_rows, {blocks, kThreads}, launch, rows, groups, counts + count,
                  sorted);
  }
}

}  // namespace mate::gpu::portable
