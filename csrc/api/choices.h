// The router's choices and the rows for them as the structs that kernels take.
#pragma once

#include "api/tensors.h"
#include "piece_params.h"

namespace mate::api {

inline Choices expert_choices(const TensorView& topk_ids, const OptionalTensor& expert_map) {
  Choices choices{};
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

inline Layout sorted_layout(const TensorView& slot_of, const TensorView& counts,
                            const TensorView& ends, const TensorView& expert_of_row,
                            const TensorView& row_of_slot, int64_t alignment, int64_t capacity) {
  return {data<int32_t>(slot_of),
          data<int32_t>(counts),
          data<int32_t>(ends),
          data<int32_t>(expert_of_row),
          data<int32_t>(row_of_slot),
          slot_of.size(0),
          counts.size(0),
          alignment,
          capacity};
}

}  // namespace mate::api
