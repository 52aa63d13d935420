// The router's choices as the struct that the CPU's routing takes.
#pragma once

#include "api/tensors.h"
#include "cpu/route.h"

namespace mate::api {

inline cpu::Choices expert_choices(const TensorView& topk_ids, const OptionalTensor& expert_map) {
  cpu::Choices choices{};
  choices.ids = data<const void>(topk_ids);
  choices.is_64_bit = topk_ids.dtype().bits == 64;
  choices.row_stride = topk_ids.stride(0);
  choices.col_stride = topk_ids.stride(1);
  choices.num_tokens = topk_ids.size(0);
  choices.topk = topk_ids.size(1);
  if (expert_map.has_value()) {
    choices.expert_map = data<const int32_t>(expert_map);
    choices.map_stride = (*expert_map).stride(0);
    choices.num_global = (*expert_map).size(0);
  }
  return choices;
}

}  // namespace mate::api
