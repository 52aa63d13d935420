// Which rows of a sorted layout hold which (token, slot) pairs.
#pragma once

#include <cstdint>
#include <vector>

#include "piece_params.h"

namespace mate::cpu {

// Sorts the slots by expert, in the order of tokens within one. Writes nothing and returns the
// first expert with more slots than `capacity` where there is one, else -1.
int64_t route(const Choices& choices, const Layout& layout);

// Row of each flat slot, or -1 for those that no row holds.
std::vector<int32_t> rows_of_slots(const int32_t* slot_of, int64_t stride, int64_t num_rows,
                                   int64_t num_slots);

}  // namespace mate::cpu
