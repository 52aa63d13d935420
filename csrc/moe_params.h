// Arguments of a whole MoE layer: rows sorted by expert, two grouped products, SwiGLU between them
// and the weighted sum behind them.
#pragma once

#include "params.h"
#include "piece_params.h"

namespace mate {

// Rows of an expert are consecutive in the sorted order. gate and up share A, whose rows are
// tokens, and the groups (Group::rows names the token of each); down has the same groups with rows
// in the sorted order, and its A is set by the kernel. The outputs of all three are not used.
struct FusedExperts {
  GroupedGemm gate, up, down;
  int64_t num_rows;  // of all groups
  float limit;       // of SwiGLU; infinity: none
  DType type;        // what the SwiGLU product is rounded to: bf16 or f16
  bool rounds;       // the products of the GEMMs too
  bool quantises;    // the SwiGLU product is rounded to e4m3 too, per row and kQuantGroup columns
  const int32_t* row_of;  // [num_tokens * topk] sorted row of each slot, or -1
  SlotWeights weights;
  Matrix out;  // [num_tokens, down.n]
  int64_t num_tokens, topk;

  static constexpr int64_t kQuantGroup = 128;
};

}  // namespace mate
