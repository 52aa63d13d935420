// Rows of tokens to rows sorted by expert and back.
#pragma once

#include "gpu/launch.h"
#include "piece_params.h"

namespace mate::gpu {

// Sorts the slots by expert, in the order of tokens within one. Slots beyond the capacity of their
// expert get no row and do not count.
void route(const Choices& choices, const Layout& layout, const Launch& launch);

void permute(const Permute& p, const Launch& launch);

// Where p.row_of is null it is found from slot_of: the slot of each row (a number that is none
// where the row holds none). Of rows that name one slot the last counts.
struct SlotsOfRows {
  const int32_t* slot_of;  // [num_rows]
  int64_t stride, num_rows;
};
void unpermute(const Unpermute& p, const SlotsOfRows& slots, const Launch& launch);

}  // namespace mate::gpu
