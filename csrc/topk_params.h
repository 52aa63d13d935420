// Arguments of the selection of the largest values as plain structs.
#pragma once

#include <cstdint>

namespace mate {

// One row to select from. Its first `carried` values are what an earlier selection left, and
// out[:carried] their indices; the value at position p >= carried has the index
// first + p - carried.
struct TopKRow {
  float* values;  // [carried + columns]
  int64_t carried, columns;
  int32_t first;
  int32_t* out;  // [k]
};

// out = ascending indices of the k largest values, then -1. Of equal values those of lower indices
// are taken; zeros are equal, NaN is larger than any number and equal to NaN.
struct TopK {
  const TopKRow* rows;  // [num_rows]
  int64_t num_rows, k;
  bool carry;  // the values selected move to the front of each row, else no value is written
  int num_threads;
};

}  // namespace mate
