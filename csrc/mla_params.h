// Arguments of attention over the latent rows of a paged cache as plain structs. Strides count
// elements; the last dimension of every tensor is contiguous.
#pragma once

#include <cstdint>

#include "params.h"

namespace mate {

// Row of position i of request r: row i % block_size of block
// block_table[r * table_stride + i / block_size].
struct LatentCache {
  const char* data;  // [num_blocks, block_size, depth]
  DType type;
  int64_t num_blocks, block_size;
  int64_t block_stride, row_stride;
  const int32_t* block_table;  // [num_requests, table_width]
  int64_t num_requests, table_width, table_stride;
};

// Query token and heads of one unit of work, whose selections are cut into segments.
struct MlaUnit {
  int64_t token, head_first, heads;
  int64_t selections;             // up to the last one that may be valid
  int64_t segment, num_segments;  // selections of a segment, segments
  int64_t part_first;             // number of the first segment among those of all units
};

// out[t, h] = sum_i softmax_i(scale * q[t, h] . kv[i]) * kv[i][:value_dim] over the selections i of
// token t: positions indices[t], or 0 .. lengths[t] - 1.
struct SparseMla {
  const char* q;  // [tokens, heads, depth]
  DType q_type;
  int64_t q_stride[2];
  LatentCache kv;
  const int32_t* request_of;  // [tokens]
  int64_t request_stride;
  const int32_t* indices;  // [tokens, num_indices], where lengths is null
  int64_t num_indices, index_stride;
  const int32_t* lengths;  // [tokens] or null
  int64_t length_stride;
  char* out;  // [tokens, heads, value_dim]
  DType out_type;
  int64_t out_stride[2];
  int64_t tokens, heads, depth, value_dim;
  float scale;
  const MlaUnit* units;
  int64_t num_units;
  int64_t num_parts;  // segments of all units, where they run apart; 0 where units run whole
  int num_threads;
};

// Rows decoded at a time, and selections of a segment unless a token has very many.
constexpr int64_t kMlaTile = 48;
constexpr int64_t kMlaSegment = 11 * kMlaTile;

}  // namespace mate
