#include "cpu/route.h"

#include <algorithm>

#include "params.h"

namespace mate::cpu {
namespace {

// Local expert of a slot, or -1.
template <typename Id>
int64_t local_expert(const Choices& c, int64_t token, int64_t j, int64_t num_experts) {
  int64_t id = static_cast<const Id*>(c.ids)[token * c.row_stride + j * c.col_stride];
  if (c.expert_map != nullptr) {
    if (id < 0 || id >= c.num_global) return -1;
    id = c.expert_map[id * c.map_stride];
  }
  return id >= 0 && id < num_experts ? id : -1;
}

template <typename Id>
int64_t sort_slots(const Choices& c, const Layout& layout) {
  std::vector<int32_t> next(layout.num_experts, 0);
  std::vector<int32_t> experts(c.num_tokens * c.topk);
  for (int64_t t = 0, slot = 0; t < c.num_tokens; ++t) {
    for (int64_t j = 0; j < c.topk; ++j, ++slot) {
      int64_t expert = local_expert<Id>(c, t, j, layout.num_experts);
      experts[slot] = static_cast<int32_t>(expert);
      if (expert >= 0) ++next[expert];
    }
  }
  if (layout.capacity > 0) {
    auto full = std::find_if(next.begin(), next.end(),
                             [&](int32_t count) { return count > layout.capacity; });
    if (full != next.end()) return full - next.begin();
  }
  std::fill_n(layout.slot_of, layout.num_rows, -1);
  std::fill_n(layout.expert_of_row, layout.num_rows, -1);
  int64_t end = 0;
  for (int64_t e = 0; e < layout.num_experts; ++e) {
    const int32_t count = next[e];
    int64_t first = ceil_div(end, layout.alignment) * layout.alignment;
    if (layout.capacity > 0) first = e * layout.capacity;
    // An expert without rows repeats the end before it, so that ends stay within the rows.
    if (count > 0 || layout.capacity > 0) end = first + count;
    layout.counts[e] = count;
    layout.ends[e] = static_cast<int32_t>(end);
    next[e] = static_cast<int32_t>(first);
    std::fill_n(layout.expert_of_row + (count > 0 ? first : 0), count, static_cast<int32_t>(e));
  }
  for (size_t slot = 0; slot < experts.size(); ++slot) {
    const int32_t row = experts[slot] >= 0 ? next[experts[slot]]++ : -1;
    layout.row_of_slot[slot] = row;
    if (row >= 0) layout.slot_of[row] = static_cast<int32_t>(slot);
  }
  return -1;
}

}  // namespace

int64_t route(const Choices& choices, const Layout& layout) {
  return choices.is_64_bit ? sort_slots<int64_t>(choices, layout)
                           : sort_slots<int32_t>(choices, layout);
}

std::vector<int32_t> rows_of_slots(const int32_t* slot_of, int64_t stride, int64_t num_rows,
                                   int64_t num_slots) {
  std::vector<int32_t> rows(num_slots, -1);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t slot = slot_of[i * stride];
    if (slot >= 0 && slot < num_slots) rows[slot] = static_cast<int32_t>(i);
  }
  return rows;
}

}  // namespace mate::cpu
