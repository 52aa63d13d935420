#include <cstring>

#include "gpu/cache_rows.h"
#include "gpu/cache_slots.cuh"
#include "gpu/launch_kernel.h"
#include "gpu/quant_group.cuh"

namespace mate::gpu {
namespace {

constexpr int kThreads = 256;

// Rows, each for a team of lanes within a warp.
struct Keys {
  Source in;
  KeyCache cache;
  Slots slots;
  Divider block_size;
  bool power_of_two;
  int log_team;
};

template <DType type, int n>
__global__ void __launch_bounds__(kThreads) quantise_keys_kernel(Keys p) {
  const int team = 1 << p.log_team, lane = threadIdx.x & (team - 1);
  const int64_t teams = kThreads >> p.log_team, depth = p.cache.depth;
  for (int64_t first = blockIdx.x * teams; first < p.slots.count; first += gridDim.x * teams) {
    const int64_t i = first + (threadIdx.x >> p.log_team);
    int64_t block = 0;
    uint32_t row = 0;
    const bool exists = i < p.slots.count && find_slot(p.slots, i, p.cache.num_blocks, p.block_size,
                                                       p.cache.block_size, block, row);
    char* data = p.cache.data + block * p.cache.block_stride;
    quantise_group<type, DType::kE4M3, false, n, 2>(
        p.in, {i * p.in.row_stride, row * depth, exists ? depth : 0, lane, team}, data, 1e-4f,
        p.power_of_two, [&](uint32_t most) { return largest_of_team(most, team); },
        [&](float scale) {
          char* at = data + p.cache.block_size * depth + row * int64_t{sizeof(float)};
          if (n > 1) {
            *reinterpret_cast<float*>(at) = scale;
          } else {
            memcpy(at, &scale, sizeof(scale));  // not necessarily aligned
          }
        });
  }
}

template <DType type, int n>
void launch_quantise_keys(const QuantiseKeys& p, const Launch& launch) {
  const int log_team = std::min(log_above(blocks_of(p.cache.depth, 2 * n)), 5);
  const SwiGlu rows{{const_cast<char*>(p.k), p.type, p.row_stride}, 0, false};
  const Keys keys{{rows, p.cache.depth, false, 0, 0}, p.cache,        p.slots,
                  Divider(p.cache.block_size),        p.power_of_two, log_team};
  const int64_t blocks = blocks_of(p.slots.count, kThreads >> log_team);
  launch_kernel("quant_and_write_k", quantise_keys_kernel<type, n>,
                {grid_of(blocks, kThreads, launch), kThreads}, launch, keys);
}

}  // namespace

void quantise_keys(const QuantiseKeys& p, const Launch& launch) {
  if (p.slots.count == 0 || p.cache.num_blocks == 0 || p.cache.depth == 0) return;
  with_wide_type(p.type, [&](auto type) {
    constexpr int n = kPerVector<type()>;
    const bool whole = p.cache.depth % n == 0 &&
                       (address(p.k) | p.row_stride * size_of(p.type)) % 16 == 0 &&
                       (address(p.cache.data) | p.cache.block_stride) % n == 0;
    if (whole) {
      launch_quantise_keys<type(), n>(p, launch);
    } else {
      launch_quantise_keys<type(), 1>(p, launch);
    }
  });
}

}  // namespace mate::gpu
