// Device side of the items: what a query row sees, which tiles an item has and where they are.
#pragma once

#include <climits>

#include "gpu/sm90a/indexer_args.h"
#include "gpu/sm90a/ptx.cuh"

namespace mate::gpu::sm90a {

// Tokens [first, end) that a row sees; the logit of token t goes to column t - shift.
struct RowView {
  int first, end, shift;
};

// Rows that follow each other: of an item, or one. Paged: draft tokens from `draft` on of a
// request.
struct RowRun {
  int first, count;
  int request, draft;
};

// Tiles of an item: tokens from `token` on.
struct TileRun {
  int token, tiles;
};

// Where a tile of keys is. Without a block, z is outside of all blocks.
struct TilePlace {
  int y, z;
};

__device__ inline RowRun merged_rows(const PagedItems& p, int item) {
  const int of_run = item % p.rows_per_item, request = __ldg(p.request_of + item);
  if (of_run > 0 && __ldg(p.request_of + item - 1) == request) return {item, 0, item, 0};
  const int most = min(p.rows_per_item - of_run, p.count - item);
  int count = 1;
#pragma unroll 1
  while (count < most && __ldg(p.request_of + item + count) == request) ++count;
  return {item, count, item, 0};
}

__device__ inline RowRun item_rows(const PagedItems& p, int item) {
  if (p.merges) return merged_rows(p, item);
  const int request = p.items_per_request == 1 ? item : item / p.items_per_request;
  const int draft = (item - request * p.items_per_request) * p.rows_per_item;
  return {request * p.next_n + draft, min(p.rows_per_item, p.next_n - draft), request, draft};
}

__device__ inline RowRun item_rows(const FlatItems& p, int item) {
  const int first = item * p.rows_per_item;
  return {first, min(p.rows_per_item, p.rows - first), 0, 0};
}

__device__ inline RowRun one_row(const PagedItems& p, int row) {
  return {row, 1, row / p.next_n, row % p.next_n};
}

__device__ inline RowRun one_row(const FlatItems&, int row) { return {row, 1, 0, 0}; }

// Device memory that tells the limits of row i of a run, as `row_view` wants them.
__device__ inline const int32_t* first_of(const PagedItems&, const RowRun&, int) { return nullptr; }
__device__ inline const int32_t* end_of(const PagedItems& p, const RowRun& rows, int i) {
  const int64_t of_row = p.lens_per_row ? (rows.draft + i) * p.lens_row_stride : 0;
  return p.context_lens + rows.request * p.lens_request_stride + of_row;
}
__device__ inline const int32_t* first_of(const FlatItems& p, const RowRun& rows, int i) {
  return p.first + (rows.first + i) * p.first_stride;
}
__device__ inline const int32_t* end_of(const FlatItems& p, const RowRun& rows, int i) {
  return p.end + (rows.first + i) * p.end_stride;
}

__device__ inline RowView row_view(const PagedItems& p, const RowRun& rows, int i, int, int end) {
  const int64_t visible = int64_t{end} - (p.lens_per_row ? 0 : p.next_n - 1 - rows.draft - i);
  return {0, static_cast<int>(min(max(visible, int64_t{0}), int64_t{p.most})), 0};
}

__device__ inline RowView row_view(const FlatItems& p, const RowRun&, int, int first, int end) {
  const int shift = p.compressed ? first : 0;
  const int64_t most = min(shift + p.columns, int64_t{p.tokens});
  return {max(first, 0), static_cast<int>(max(min(int64_t{end}, most), int64_t{0})), shift};
}

template <typename Items>
__device__ inline RowView row_view(const Items& p, const RowRun& rows, int i) {
  const int32_t* first = first_of(p, rows, i);
  return row_view(p, rows, i, first == nullptr ? 0 : __ldg(first), __ldg(end_of(p, rows, i)));
}

__device__ inline int tiles_of(int tokens) { return (tokens + kTileTokens - 1) / kTileTokens; }

template <typename Items>
__device__ inline TileRun run_tiles(const Items& p, const RowRun& rows) {
  int first = INT_MAX, end = 0;
  // Unrolled, it would be most of the code that each block has to fetch before its first copy.
#pragma unroll 1
  for (int i = 0; i < rows.count; ++i) {
    const RowView seen = row_view(p, rows, i);
    if (seen.first >= seen.end) continue;
    first = min(first, seen.first);
    end = max(end, seen.end);
  }
  if (end == 0) return {0, 0};
  constexpr int kSector = 16;  // tiles start where sectors of the scales and of the logits do
  first = first / kSector * kSector;
  return {first, tiles_of(end - first)};
}

__device__ inline TileRun item_tiles(const PagedItems& p, int item) {
  if (p.plain) {
    const int end = __ldg(p.context_lens + item * p.lens_request_stride);
    return {0, tiles_of(min(max(end, 0), p.most))};
  }
  return run_tiles(p, item_rows(p, item));
}
__device__ inline TileRun item_tiles(const FlatItems& p, int item) {
  return run_tiles(p, item_rows(p, item));
}

__device__ inline TilePlace tile_place(const PagedItems& p, int item, int token) {
  int64_t request = p.items_per_request == 1 ? item : item / p.items_per_request;
  if (p.request_of != nullptr) request = __ldg(p.request_of + request);
  const int column = token >> p.block_bits;
  const int block = __ldg(p.block_table + request * p.table_stride + column);
  const bool exists = block >= 0 && block < p.num_blocks;
  return {token - (column << p.block_bits), exists ? block : -1};
}

// Part `i` of what `tile_place` reads first, while the lengths are under way.
__device__ inline void prefetch_places(const PagedItems& p, int i) {
  constexpr int kEntries = 32;  // of a cache line
  const int lines = (p.most - 1 >> p.block_bits) / kEntries + 1, item = i / lines;
  if (p.plain && p.most > 0 && item < p.count) {
    prefetch(p.block_table + item * p.table_stride + (i - item * lines) * kEntries);
  }
}
__device__ inline void prefetch_places(const FlatItems&, int) {}

__device__ inline TilePlace tile_place(const FlatItems&, int, int token) { return {token, 0}; }

}  // namespace mate::gpu::sm90a
