// Tensor maps for the copy engine, made on the host for each call and passed by value.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "params.h"

namespace mate::gpu::sm90a {

// A tensor [z, y, x] with x contiguous, strides in bytes, and the box that one copy moves. Rows of
// a box are `x` elements: at most 128 bytes, and swizzled by that many (32, 64 or 128) where
// `swizzles`.
struct TensorBox {
  const void* data;
  DType type;
  int64_t x, y, z;
  int64_t y_stride, z_stride;
  int box_x, box_y;
  bool swizzles = true;
};

// Whether the copy engine takes it: addresses and strides are multiples of 16 bytes.
bool is_aligned(const TensorBox& box);

CUtensorMap tensor_map(const TensorBox& box);

}  // namespace mate::gpu::sm90a
