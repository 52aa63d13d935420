#include <cstring>

#include "gpu/block_scan.cuh"
#include "gpu/cache_rows.h"
#include "gpu/cache_slots.cuh"
#include "gpu/launch_kernel.h"
#include "gpu/scratch.h"

namespace mate::gpu {
namespace {

constexpr int kThreads = 256;

// starts[r] = rows of the requests before r, by all of a block.
__device__ inline void scan_lengths(const ContextLens& lens, int64_t num_requests,
                                    int64_t* starts) {
  __shared__ int64_t sums[2][kWarp];
  int64_t before = 0;
  int turn = 0;
  for (int64_t base = 0; base < num_requests; base += blockDim.x) {
    const int64_t r = base + threadIdx.x;
    int64_t length = r < num_requests ? lens.data[r * lens.stride] : 0;
    length = length < 0 ? 0 : length > lens.most ? lens.most : length;
    const Prefix<int64_t> prefix = scan_block(length, sums[turn], Sum());
    turn ^= 1;
    if (r < num_requests) starts[r] = before + prefix.before;
    before += prefix.all;
  }
  if (threadIdx.x == 0) starts[num_requests] = before;
}

constexpr int kScanThreads = 1024;

__global__ void __launch_bounds__(kScanThreads)
    scan_lengths_kernel(ContextLens lens, int64_t num_requests, int64_t* starts) {
  scan_lengths(lens, num_requests, starts);
}

// The request that row i belongs to: the last one that starts at or before it.
__device__ inline int64_t request_of(const int64_t* starts, int64_t num_requests, int64_t i) {
  int64_t low = 0, high = num_requests;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (starts[middle] <= i ? low : high) = middle;
  }
  return low;
}

struct Gather {
  GatherKeys p;  // starts null: every block counts rows itself
  ContextLens lens;
  Divider block_size;
  int log_team;
};

constexpr int kGathered = 8;              // accesses of a lane at a time
constexpr int64_t kCountedByBlock = 512;  // requests, at most

// Where the codes and the scale of row i are, or null.
struct Key {
  const char *codes, *scale;
};

__device__ inline Key find_key(const Gather& g, const int64_t* starts, int64_t i) {
  const GatherKeys& p = g.p;
  const int64_t request = request_of(starts, p.num_requests, i);
  uint32_t row;
  const auto position = static_cast<uint32_t>(i - starts[request]);
  const int64_t column = g.block_size.divide(position, row);
  const int64_t block = p.block_table[request * p.table_stride + column];
  if (block < 0 || block >= p.cache.num_blocks) return {nullptr, nullptr};
  const char* data = p.cache.data + block * p.cache.block_stride;
  return {data + row * p.cache.depth,
          data + p.cache.block_size * p.cache.depth + row * sizeof(float)};
}

// Each lane finds a row; teams of lanes copy the codes of all that their warp found, by accesses of
// type T. Scales go by bytes where they are not aligned.
template <typename T>
__global__ void __launch_bounds__(kThreads) gather_keys_kernel(Gather g) {
  __shared__ int64_t counted[kCountedByBlock + 1];
  const GatherKeys& p = g.p;
  const int64_t* starts = p.starts;
  if (starts == nullptr) {
    scan_lengths(g.lens, p.num_requests, counted);
    __syncthreads();
    starts = counted;
  }
  const int lane = threadIdx.x % kWarp, team = 1 << g.log_team, teams = kWarp >> g.log_team;
  const int64_t width = p.cache.depth / sizeof(T), total = starts[p.num_requests];
  const int64_t rows = total < p.rows ? total : p.rows;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x - lane;
       first < rows; first += static_cast<int64_t>(gridDim.x) * kThreads) {
    const Key key = first + lane < rows ? find_key(g, starts, first + lane) : Key{};
    float scale = 0;
    if (key.scale != nullptr) {
      if (sizeof(T) >= sizeof(float)) {
        scale = *reinterpret_cast<const float*>(key.scale);
      } else {
        memcpy(&scale, key.scale, sizeof(scale));
      }
    }
    for (int row = lane >> g.log_team; row < kWarp; row += kGathered * teams) {
      const char* from[kGathered];
#pragma unroll
      for (int h = 0; h < kGathered; ++h) {
        from[h] = reinterpret_cast<const char*>(__shfl_sync(
            kAllLanes, reinterpret_cast<unsigned long long>(key.codes), (row + h * teams) % kWarp));
      }
      for (int64_t at = lane & (team - 1); at < width; at += team) {
        T v[kGathered] = {};
#pragma unroll
        for (int h = 0; h < kGathered; ++h) {
          if (row + h * teams < kWarp && from[h] != nullptr) {
            v[h] = reinterpret_cast<const T*>(from[h])[at];
          }
        }
#pragma unroll
        for (int h = 0; h < kGathered; ++h) {
          const int64_t i = first + row + h * teams;
          if (row + h * teams < kWarp && i < rows) {
            reinterpret_cast<T*>(p.codes + i * p.row_stride)[at] = v[h];
          }
        }
      }
    }
    if (first + lane < rows) p.scales[(first + lane) * p.scale_stride] = scale;
  }
}

// Rows of a cache, each written by a team of lanes. All numbers of bytes as accesses instead.
struct Written {
  WriteRows p;
  Divider block_size;
  int log_team;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) write_rows_kernel(Written w) {
  constexpr int kCopies = 4;
  const WriteRows& p = w.p;
  const int team = 1 << w.log_team, lane = threadIdx.x & (team - 1);
  const int64_t teams = kThreads >> w.log_team;
  const int64_t split = p.parts[0].bytes, width = split + p.parts[1].bytes;
  for (int64_t i = blockIdx.x * teams + (threadIdx.x >> w.log_team); i < p.slots.count;
       i += gridDim.x * teams) {
    int64_t block;
    uint32_t row;
    if (!find_slot(p.slots, i, p.num_blocks, w.block_size, p.block_size, block, row)) continue;
    const T* front = reinterpret_cast<const T*>(p.parts[0].data) + i * p.parts[0].row_stride;
    const T* back = reinterpret_cast<const T*>(p.parts[1].data) + i * p.parts[1].row_stride - split;
    T* to = reinterpret_cast<T*>(p.cache) + block * p.block_stride + row * p.row_stride;
    for (int64_t first = lane; first < width; first += kCopies * team) {
      T v[kCopies];
#pragma unroll
      for (int h = 0; h < kCopies; ++h) {
        const int64_t at = first + h * team;
        if (at < width) v[h] = at < split ? front[at] : back[at];
      }
#pragma unroll
      for (int h = 0; h < kCopies; ++h) {
        const int64_t at = first + h * team;
        if (at < width) to[at] = v[h];
      }
    }
  }
}

}  // namespace

void gather_keys(const GatherKeys& p, const ContextLens& lens, const Launch& launch) {
  if (p.rows == 0 || p.num_requests == 0) return;
  const bool counts = p.num_requests <= kCountedByBlock;
  const Scratch starts(counts ? 0 : (p.num_requests + 1) * sizeof(int64_t), launch);
  Gather gather{p, lens, Divider(p.cache.block_size), 0};
  gather.p.starts = starts.at<int64_t>();
  if (!counts) {
    launch_kernel("gather_k", scan_lengths_kernel, {1, kScanThreads}, launch, lens, p.num_requests,
                  starts.at<int64_t>());
  }
  const int64_t numbers = address(p.cache.data) | p.cache.block_stride | p.cache.depth |
                          address(p.codes) | p.row_stride;
  with_access(numbers, [&](auto access) {
    using T = decltype(access);
    gather.log_team = std::min(log_above(p.cache.depth / static_cast<int64_t>(sizeof(T))), 5);
    // No more than are at work at once, each of which counts rows once.
    const int64_t blocks =
        std::min(blocks_of(p.rows, kThreads), int64_t{launch.num_sms} * (2048 / kThreads));
    launch_kernel("gather_k", gather_keys_kernel<T>, {grid_of(blocks, kThreads, launch), kThreads},
                  launch, gather);
  });
}

void write_rows(const WriteRows& p, const Launch& launch) {
  if (p.slots.count == 0 || p.num_blocks == 0 || p.block_size == 0) return;
  int64_t numbers = address(p.cache) | p.block_stride | p.row_stride;
  for (const WriteRows::Part& part : p.parts) {
    // One that has no bytes may have no memory.
    if (part.bytes > 0) numbers |= address(part.data) | part.bytes | part.row_stride;
  }
  with_access(numbers, [&](auto access) {
    using T = decltype(access);
    constexpr int64_t size = sizeof(T);
    Written written{p, Divider(p.block_size), 0};
    for (WriteRows::Part& part : written.p.parts) {
      part.bytes /= size;
      part.row_stride /= size;
    }
    written.p.block_stride /= size;
    written.p.row_stride /= size;
    const int64_t width = written.p.parts[0].bytes + written.p.parts[1].bytes;
    if (width == 0) return;
    written.log_team = std::min(log_above(blocks_of(width, 2)), 5);
    const int64_t blocks = blocks_of(p.slots.count, kThreads >> written.log_team);
    launch_kernel("write_latents", write_rows_kernel<T>,
                  {grid_of(blocks, kThreads, launch), kThreads}, launch, written);
  });
}

}  // namespace mate::gpu
