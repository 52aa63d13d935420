// Scores of the lightning indexer on a GPU. Lengths, ranges and block tables are in device memory,
// where the host does not read them; what they name is cut to what exists.
//     logits[row, t] = k_scale[t] * sum_h weights[row, h] * relu(sum_d q[row, h, d] * k[t, d])
// A NaN in q or weights makes the visible part of its row NaN, one in a key or its scale a column.
#pragma once

#include <climits>
#include <cstdint>

#include "gpu/launch.h"
#include "params.h"

namespace mate::gpu {

// What both forms share. q has one byte an element and a contiguous last dimension; the other
// strides count elements.
struct Scores {
  const uint8_t* q;
  DType q_type;  // e4m3 or e5m2
  int64_t q_row_stride, q_head_stride;
  int64_t heads, depth;  // depth is a multiple of 16
  const float* weights;  // [rows, heads]
  int64_t weight_row_stride, weight_head_stride;
  float* out;  // [rows, columns], last dimension contiguous
  int64_t out_stride, columns;
  bool clean;  // fill columns of no visible token with clean_value
  float clean_value;
};

// Token t of request b is row t % block_size of block block_table[b, t / block_size]: a block holds
// block_size rows of `depth` e4m3 codes and then block_size float32 scales. Where that block does
// not exist, the logit is clean_value, `clean` or not.
//
// Row b * next_n + j of the outputs and weights is draft token j of request b; its queries are at
// q + b * q_request_stride + j * q_row_stride. It sees the tokens below
//     context_lens[b * lens_request_stride] - next_n + 1 + j,  where lens_per_row is false, or
//     context_lens[b * lens_request_stride + j * lens_row_stride]
// and below min(columns, table_width * block_size).
struct PagedScores : Scores {
  int64_t batch, next_n;
  int64_t q_request_stride;
  const int32_t* context_lens;
  bool lens_per_row;
  int64_t lens_request_stride, lens_row_stride;
  const uint8_t* cache;
  int64_t num_blocks, block_size;  // block_size is a power of two, at least 16
  int64_t block_stride;            // bytes, a multiple of 4 where there are several blocks
  const int32_t* block_table;      // [requests, table_width]
  int64_t table_stride, table_width;
  // Row of block_table of each b in [0, batch), all of which exist; null: b itself. So that rows of
  // a ragged batch can be scored as requests of one token each.
  const int32_t* request_of = nullptr;
};

// Row r sees the tokens of [first[r], end[r]) that exist. The logit of token t goes to column t, or
// to column t - first[r] where `compressed`.
struct FlatScores : Scores {
  int64_t rows;
  const uint8_t* k;  // [tokens, depth], last dimension contiguous
  DType k_type;      // e4m3 or e5m2
  int64_t k_row_stride;
  const float* k_scale;  // [tokens]
  int64_t k_scale_stride;
  int64_t tokens;
  const int32_t *first, *end;
  int64_t first_stride, end_stride;
  bool compressed;
};

void portable_paged_scores(const PagedScores& p, const Launch& launch);
void portable_flat_scores(const FlatScores& p, const Launch& launch);

// Why the sm_90a kernels cannot serve a call, or null.
const char* sm90a_paged_unfit(const PagedScores& p);
const char* sm90a_flat_unfit(const FlatScores& p);
void sm90a_paged_scores(const PagedScores& p, const Launch& launch);
void sm90a_flat_scores(const FlatScores& p, const Launch& launch);

// The published split of a paged batch over processors: see cpu::split_segments.
struct PagedSchedule {
  const int32_t* context_lens;  // [batch, next_n], of which the largest of a row counts
  int64_t batch, next_n, lens_stride[2];
  int64_t segment;     // tokens
  int64_t processors;  // at least 1
  int32_t* start;      // [processors + 1, 2], last dimension contiguous
  int64_t start_stride;
};

void split_segments(const PagedSchedule& p, const Launch& launch);

// Tokens of the k largest logits of each row of a ragged batch, ascending, then -1. Request b has
// the rows of [query_start_loc[b], query_start_loc[b + 1]), its last tokens; rows that see no more
// than k tokens take all of them.
struct IndexTopK {
  // The rows as requests of one token each. Lengths, request_of, clean_value and what is written
  // are set in index_topk.
  PagedScores scores;
  int64_t requests;
  const int32_t* query_start_loc;  // [requests + 1]
  const int32_t* context_lens;     // [requests]
  int64_t start_stride, lens_stride;
  int32_t* out;  // [rows, k], last dimension contiguous
  int64_t out_stride, k;
  int64_t budget;  // bytes of logits; room for k and for four blocks of tokens at least
};

// `score` is one of the functions above, or chooses between them.
void index_topk(const IndexTopK& p, void (*score)(const PagedScores&, const Launch&),
                const Launch& launch);

// Most bytes of logits that calls of index_topk held at one time, since the process started or the
// last reset.
int64_t logits_peak();
void reset_logits_peak();

}  // namespace mate::gpu
