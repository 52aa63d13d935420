// Rows of tokens to rows sorted by expert and back.
#pragma once

#include "gpu/launch.h"
#include "piece_params.h"

namespace mate::gpu {

// Experts chosen by each token, and which rows of a sorted layout hold which (token, slot) pairs.
struct Route {
  const void* ids;  // [num_tokens, topk]
  bool is_64_bit;
  int64_t row_stride, col_stride;
  int64_t num_tokens, topk;
  const int32_t* expert_map;  // [num_global] local index of each expert, or null: ids are local
  int64_t map_stride, num_global;

  int32_t* row_of;         // [num_rows] flat slot of each row, or -1
  int32_t* counts;         // [num_experts]
  int32_t* ends;           // [num_experts] one past the last row of each expert
  int32_t* expert_of_row;  // [num_rows] or -1
  int64_t num_rows, num_experts;
  int64_t alignment;  // the first row of an expert is a multiple of it
  int64_t capacity;   // rows of each expert, used or not; 0: as many as it has, aligned
};

// Sorts the slots by expert, in the order of tokens within one. Slots beyond the capacity of their
// expert get no row and do not count.
void route(const Route& p, const Launch& launch);

void permute(const Permute& p, const Launch& launch);

// p.row_of is not used, but slot_of: the slot of each row (a number that is none where the row
// holds none). Of rows that name one slot the last counts.
struct SlotsOfRows {
  const int32_t* slot_of;  // [num_rows]
  int64_t stride, num_rows;
};
void unpermute(const Unpermute& p, const SlotsOfRows& slots, const Launch& launch);

}  // namespace mate::gpu
