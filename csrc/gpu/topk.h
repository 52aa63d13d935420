// The largest values of rows.
#pragma once

#include <cstdint>

#include "gpu/launch.h"

namespace mate::gpu {

// out[r] = ascending indices of the k largest of row r, counted from its first column, then -1. Of
// equal values those of lower indices are taken; zeros are equal, NaN is larger than any number and
// equal to NaN. Row r has the columns from starts[r] to lengths[r], cut to those there are.
struct TopKRows {
  const float* values;  // [num_rows, columns], last dimension contiguous
  int64_t row_stride, num_rows, columns;
  const int32_t* lengths;
  int64_t length_stride;
  const int32_t* starts;  // null: all rows start at 0
  int64_t start_stride;
  int32_t* out;  // [num_rows, k]
  int64_t out_stride, k;
};

void top_k(const TopKRows& p, const Launch& launch);

}  // namespace mate::gpu
