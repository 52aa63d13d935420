// Weights of (token, slot) pairs.
#pragma once

#include "gpu/convert.cuh"
#include "piece_params.h"

namespace mate::gpu {

__device__ inline float weight_of_slot(const SlotWeights& w, int64_t token, int64_t j) {
  if (w.data == nullptr) return 1.0f;
  const int64_t i = token * w.row_stride + j * w.col_stride;
  if (w.type == DType::kBF16) return load<DType::kBF16>(w.data, i);
  if (w.type == DType::kF16) return load<DType::kF16>(w.data, i);
  return load<DType::kF32>(w.data, i);
}

}  // namespace mate::gpu
