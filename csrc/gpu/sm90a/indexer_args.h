// What the Hopper kernels of the indexer's scores get from the host. An item is a run of query rows
// that see the keys of one sequence; its work is the tiles of tokens that any of its rows sees.
#pragma once

#include <cuda.h>

#include "gpu/indexer.h"

namespace mate::gpu::sm90a {

constexpr int kTileTokens = 64;  // rows of a warpgroup's product

// Items of a paged batch: up to rows_per_item draft tokens of one request. With `merges`, requests
// have one token each, and an item starts at each; it has those that follow on the same row of the
// table, up to a multiple of rows_per_item, or nothing if the one before does so too.
struct PagedItems {
  int count, rows, rows_per_item;
  int items_per_request, next_n;
  bool plain;  // an item of each request, which sees as many tokens as its one length says
  const int32_t* context_lens;
  bool lens_per_row;
  int64_t lens_request_stride, lens_row_stride;
  const int32_t* block_table;
  int64_t table_stride;
  const int32_t* request_of;
  bool merges;
  int num_blocks, block_bits;  // blocks of 1 << block_bits tokens
  int most;                    // tokens that a row may see
};

// Items of rows over one array of keys: rows_per_item rows that follow each other.
struct FlatItems {
  int count, rows, rows_per_item;
  const int32_t *first, *end;
  int64_t first_stride, end_stride;
  int tokens;
  int64_t columns;
  bool compressed;
};

template <typename Items>
struct ScoreArgs {
  CUtensorMap queries;           // [rows, heads, depth], boxes of the heads of one row
  CUtensorMap keys, key_scales;  // [blocks, tokens, depth] and [blocks, 1, tokens], by tiles
  Items items;
  const float* weights;
  int64_t weight_row_stride, weight_head_stride;
  int heads, depth;
  bool keys_once;  // no key belongs to several items
  float* out;
  int64_t out_stride, columns;
  bool clean;
  float clean_value;
};

// Query rows that a warpgroup multiplies with one tile of keys: `groups` products of `columns`
// columns, of which each row takes `row_heads`. Warpgroups take tiles in turn, or each tile by
// rows.
struct ScoreShape {
  int columns, groups, row_heads;
  bool splits_rows;

  constexpr int warpgroups() const { return groups == 1 ? 3 : 2; }
  constexpr int group_rows() const { return columns / row_heads; }
  constexpr int warpgroup_rows() const { return group_rows() * groups; }
  constexpr int item_rows() const { return warpgroup_rows() * (splits_rows ? warpgroups() : 1); }
};

// The shape for runs of `rows` rows that share their keys; heads is at most 128.
ScoreShape score_shape(int64_t heads, int64_t rows);

void launch_paged(const ScoreShape& shape, const ScoreArgs<PagedItems>& args, const Launch& launch);
void launch_flat(const ScoreShape& shape, const ScoreArgs<FlatItems>& args, const Launch& launch);

}  // namespace mate::gpu::sm90a
