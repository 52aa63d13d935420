// Slots of a mapping to rows of a paged cache.
#pragma once

#include "cache_params.h"
#include "gpu/units.cuh"

namespace mate::gpu {

// Where slot i of a mapping is in a cache, or false where there is no such row.
__device__ inline bool find_slot(const Slots& slots, int64_t i, int64_t num_blocks,
                                 const Divider& block_size, int64_t rows_per_block, int64_t& block,
                                 uint32_t& row) {
  const int64_t slot = slots.is_64_bit ? static_cast<const int64_t*>(slots.data)[i * slots.stride]
                                       : static_cast<const int32_t*>(slots.data)[i * slots.stride];
  if (slot < 0 || slot >= num_blocks * rows_per_block) return false;
  if (slot <= INT32_MAX) {
    block = block_size.divide(static_cast<uint32_t>(slot), row);
  } else {
    block = slot / rows_per_block;
    row = static_cast<uint32_t>(slot % rows_per_block);
  }
  return true;
}

}  // namespace mate::gpu
