// Arguments of the kernels that write and read paged caches as plain structs.
#pragma once

#include <cstdint>

#include "params.h"

namespace mate {

// Row of the cache that each of `count` rows goes to: slot s is row s % block_size of block
// s / block_size; the row is skipped where no such block exists.
struct Slots {
  const void* data;
  bool is_64_bit;
  int64_t stride, count;

  int64_t at(int64_t i) const {
    return is_64_bit ? static_cast<const int64_t*>(data)[i * stride]
                     : static_cast<const int32_t*>(data)[i * stride];
  }
};

// The indexer's keys: each block holds block_size rows of `depth` e4m3 codes and then block_size
// float32 scales.
struct KeyCache {
  char* data;
  int64_t num_blocks, block_size, depth;
  int64_t block_stride;  // bytes

  char* codes(int64_t block, int64_t row) const {
    return data + block * block_stride + row * depth;
  }
  char* scale(int64_t block, int64_t row) const {
    return codes(block, block_size) + row * static_cast<int64_t>(sizeof(float));
  }
};

// Row i of k is divided by scale = max(amax, 1e-4) / 448 and goes to its slot.
struct QuantiseKeys {
  const char* k;  // [>= slots.count, depth], last dimension contiguous
  DType type;
  int64_t row_stride;
  KeyCache cache;
  Slots slots;
  bool power_of_two;  // scales are rounded up to powers of two
  int num_threads;
};

// codes[starts[r] + i], scales[starts[r] + i] = key and scale of position i of request r; zeros
// where its block does not exist.
struct GatherKeys {
  KeyCache cache;
  const int32_t* block_table;  // [num_requests, table_width]
  int64_t table_stride;
  const int64_t* starts;  // [num_requests + 1], does not fall
  int64_t num_requests;
  char* codes;    // [rows, depth]
  float* scales;  // [rows]
  int64_t row_stride, scale_stride;
  int64_t rows;  // written at most
  int num_threads;
};

// Row i of the parts, one after the other, goes to its slot of a cache of rows. Strides count
// bytes.
struct WriteRows {
  struct Part {
    const char* data;
    int64_t bytes, row_stride;
  };
  Part parts[2];
  char* cache;  // [num_blocks, block_size]
  int64_t num_blocks, block_size;
  int64_t block_stride, row_stride;
  Slots slots;
  int num_threads;
};

}  // namespace mate
