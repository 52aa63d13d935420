// Which rows of a sorted layout hold which (token, slot) pairs.
#pragma once

#include <cstdint>
#include <vector>

namespace mate::cpu {

// Experts chosen by each token, as the router gives them: int32 or int64 with free strides.
struct Choices {
  const void* ids;  // [num_tokens, topk]
  bool is_64_bit;
  int64_t row_stride, col_stride;
  int64_t num_tokens, topk;
  const int32_t* expert_map;  // [num_global] local index of each expert, or null: ids are local
  int64_t map_stride, num_global;
};

// Row i of the layout holds flat slot row_of[i] and belongs to expert_of_row[i]; -1: to none.
struct Layout {
  int32_t* row_of;         // [num_rows]
  int32_t* counts;         // [num_experts]
  int32_t* ends;           // [num_experts] one past the last row of each expert
  int32_t* expert_of_row;  // [num_rows]
  int64_t num_rows, num_experts;
  int64_t alignment;  // the first row of an expert is a multiple of it
  int64_t capacity;   // rows of each expert, used or not; 0: as many as it has, aligned
};

// Sorts the slots by expert, in the order of tokens within one. Writes nothing and returns the
// first expert with more slots than `capacity` where there is one, else -1.
int64_t route(const Choices& choices, const Layout& layout);

// Row of each flat slot, or -1 for those that no row holds.
std::vector<int32_t> rows_of_slots(const int32_t* slot_of, int64_t stride, int64_t num_rows,
                                   int64_t num_slots);

}  // namespace mate::cpu
