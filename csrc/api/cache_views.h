// Paged caches and slots as the structs that kernels take.
#pragma once

#include "api/tensors.h"
#include "cache_params.h"

namespace mate::api {

inline Slots slots_of(const TensorView& x) {
  return {data<const void>(x), x.dtype().bits == 64, x.stride(0), x.size(0)};
}

// cache is uint8 [num_blocks, block_size, depth + 4].
inline KeyCache key_cache(const TensorView& cache) {
  return {data<char>(cache), cache.size(0), cache.size(1),
          cache.size(2) - static_cast<int64_t>(sizeof(float)), cache.stride(0)};
}

}  // namespace mate::api
