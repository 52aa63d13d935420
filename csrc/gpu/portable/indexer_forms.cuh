// The two forms of the indexer's scores, as the kernel sees them: what a row is, what it sees, and
// where its keys are.
#pragma once

#include "gpu/indexer.h"
#include "gpu/portable/elements.cuh"

namespace mate::gpu::portable {

// Tokens [first, end) are seen; that of token t goes to column t - shift.
struct SeenRow {
  const uint8_t* q;
  const float* weights;
  float* out;
  int64_t first, end, shift;
  int64_t request;  // whose keys

  __device__ int64_t first_column() const { return first - shift; }
  __device__ int64_t end_column() const { return end - shift; }
};

struct Key {
  const uint8_t* codes;  // null: there is no such key
  float scale;
};

// A float that may lie anywhere.
__device__ inline float load_float(const uint8_t* from) {
  if (reinterpret_cast<uintptr_t>(from) % 4 == 0) return *reinterpret_cast<const float*>(from);
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) bits |= static_cast<uint32_t>(from[i]) << 8 * i;
  return __uint_as_float(bits);
}

struct PagedForm {
  PagedScores p;
  int block_log;  // of the block size to base 2

  __host__ __device__ int64_t rows() const { return p.batch * p.next_n; }
  __device__ DType key_type() const { return DType::kE4M3; }

  __device__ SeenRow row(int64_t r) const {
    const int64_t b = p.next_n == 1 ? r : r / p.next_n, j = r - b * p.next_n;
    const int32_t* lens = p.context_lens + b * p.lens_request_stride;
    int64_t end = p.lens_per_row ? lens[j * p.lens_row_stride] : lens[0] - p.next_n + 1 + j;
    end = min(end, min(p.columns, p.table_width << block_log));
    return {p.q + b * p.q_request_stride + j * p.q_row_stride,
            p.weights + r * p.weight_row_stride,
            p.out + r * p.out_stride,
            0,
            max(end, static_cast<int64_t>(0)),
            0,
            p.request_of == nullptr ? b : p.request_of[b]};
  }

  __device__ Key key(const SeenRow& row, int64_t t) const {
    const int64_t block = p.block_table[row.request * p.table_stride + (t >> block_log)];
    if (block < 0 || block >= p.num_blocks) return {nullptr, 0};
    const int64_t in_block = t & (p.block_size - 1);
    const uint8_t* data = p.cache + block * p.block_stride;
    return {data + in_block * p.depth,
            load_float(data + p.block_size * p.depth + in_block * static_cast<int64_t>(4))};
  }
};

struct FlatForm {
  FlatScores p;

  __host__ __device__ int64_t rows() const { return p.rows; }
  __device__ DType key_type() const { return p.k_type; }

  __device__ SeenRow row(int64_t r) const {
    const int64_t from = p.first[r * p.first_stride], shift = p.compressed ? from : 0;
    const int64_t first = max(from, static_cast<int64_t>(0));
    const int64_t to = static_cast<int64_t>(p.end[r * p.end_stride]);
    const int64_t end = min(to, min(p.tokens, shift + p.columns));
    SeenRow row{p.q + r * p.q_row_stride,
                p.weights + r * p.weight_row_stride,
                p.out + r * p.out_stride,
                first,
                end,
                shift,
                0};
    if (first >= end) row.first = row.end = row.shift = 0;
    return row;
  }

  __device__ Key key(const SeenRow&, int64_t t) const {
    return {p.k + t * p.k_row_stride, p.k_scale[t * p.k_scale_stride]};
  }
};

}  // namespace mate::gpu::portable
