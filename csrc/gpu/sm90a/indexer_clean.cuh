// Columns of tokens that a row does not see, filled by warps that have nothing else to do. Scores
// go to other columns, so neither waits for the other.
#pragma once

#include "gpu/sm90a/indexer_items.cuh"

namespace mate::gpu::sm90a {

// One warp.
__device__ inline void fill_columns(float* row, int64_t first, int64_t end, float value) {
  const int lane = threadIdx.x % 32;
  // Up to where 16 bytes can be written at once, those, and the rest.
  const int skew = static_cast<int>(reinterpret_cast<uintptr_t>(row + first) / 4 % 4);
  const int64_t body = min(first + (4 - skew) % 4, end),
                tail = body + max(end - body, int64_t{0}) / 4 * 4;
  if (first + lane < body) row[first + lane] = value;
  const float4 four{value, value, value, value};
  for (int64_t i = body + 4 * lane; i < tail; i += 128) *reinterpret_cast<float4*>(row + i) = four;
  if (tail + lane < end) row[tail + lane] = value;
}

// One of `warps` warps. Runs of columns go round, so that long rows do not hold one of them up.
template <typename Items>
__device__ void clean_rows(const ScoreArgs<Items>& p, int warp, int warps) {
  constexpr int64_t kRun = 1024;
  const int64_t runs = (p.columns + kRun - 1) / kRun;
  for (int64_t i = warp; i < p.items.rows * runs; i += warps) {
    const int64_t row = i / runs, first = (i - row * runs) * kRun;
    const int64_t end = min(first + kRun, p.columns);
    const RowView seen = row_view(p.items, one_row(p.items, static_cast<int>(row)), 0);
    const bool sees = seen.first < seen.end;
    const int64_t from = sees ? int64_t{seen.first} - seen.shift : 0;
    const int64_t to = sees ? int64_t{seen.end} - seen.shift : 0;
    float* out = p.out + row * p.out_stride;
    fill_columns(out, first, min(from, end), p.clean_value);
    fill_columns(out, max(first, to), end, p.clean_value);
  }
}

}  // namespace mate::gpu::sm90a
