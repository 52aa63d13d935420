// Arguments of the kernels around the GEMMs of a layer. Strides count elements; the last dimension
// of every matrix is contiguous unless a column stride is given.
#pragma once

#include "params.h"

namespace mate {

// out[r, c] of `type` at data + r * row_stride + c.
struct Matrix {
  void* data;
  DType type;
  int64_t row_stride;
};

// gate = x[r, :cols], up = x[r, cols:]; out[r, c] = gate * sigmoid(gate) * up in float32.
struct SwiGlu {
  Matrix x;      // [rows, 2 * cols]
  float limit;   // gate is cut at limit, up at +-limit; infinity: neither
  bool rounded;  // the product is rounded to x.type before anything else is done with it
};

struct SiluAndMul {
  SwiGlu in;
  Matrix out;  // [rows, cols]
  int64_t rows, cols;
  int num_threads;
};

// Each group of columns of a row is divided by its own scale = max(amax, 1e-10) / largest code.
struct Quantise {
  SwiGlu in;     // x is [rows, cols] where gated is false
  bool gated;    // quantise the SwiGLU product instead of x
  Matrix q;      // [rows, cols], e4m3 or e5m2
  float* scale;  // [rows, ceil(cols / group)]
  int64_t scale_row_stride, scale_col_stride;
  bool power_of_two;  // scales are rounded up to powers of two
  int64_t rows, cols, group;
  int num_threads;
};

// Weight of slot j of token t: element t * row_stride + j * col_stride of data.
struct SlotWeights {
  const void* data;  // null: every weight is 1
  DType type;
  int64_t row_stride, col_stride;
};

// Experts chosen by each token, as the router gives them: int32 or int64 with free strides. Slot
// token * topk + j is its j-th choice.
struct Choices {
  const void* ids;  // [num_tokens, topk]
  bool is_64_bit;
  int64_t row_stride, col_stride;
  int64_t num_tokens, topk;
  const int32_t* expert_map;  // [num_global] local index of each expert, or null: ids are local
  int64_t map_stride, num_global;
};

// Which rows of a sorted layout hold which slots. Row i holds slot slot_of[i] and belongs to
// expert_of_row[i]; -1: to none.
struct Layout {
  int32_t* slot_of;        // [num_rows]
  int32_t* counts;         // [num_experts]
  int32_t* ends;           // [num_experts] one past the last row of each expert
  int32_t* expert_of_row;  // [num_rows]
  int32_t* row_of_slot;    // [num_tokens * topk], -1: the slot has no row
  int64_t num_rows, num_experts;
  int64_t alignment;  // the first row of an expert is a multiple of it
  int64_t capacity;   // rows of each expert, used or not; 0: as many as it has, aligned
};

// rows[i] = hidden[slot / topk] (* weight of the slot) with slot = slot_of[i]; other rows stay.
struct Permute {
  Matrix hidden;           // [num_slots / topk, cols]
  Matrix rows;             // [num_rows, cols], type of hidden
  const int32_t* slot_of;  // [num_rows]; a number outside [0, num_slots) is no slot
  int64_t slot_stride;
  const int32_t* row_of_slot;  // [num_slots] says the same; null where that is not known
  SlotWeights weights;
  int64_t num_rows, num_slots, topk, cols;
  int num_threads;
};

// out[t] = sum over j of weight(t, j) * rows[row_of[t * topk + j]], j ascending, in float32.
struct Unpermute {
  Matrix rows;
  Matrix out;             // [num_tokens, cols]
  const int32_t* row_of;  // [num_tokens * topk]; -1: the slot counts nothing
  SlotWeights weights;
  int64_t num_tokens, topk, cols;
  int num_threads;
};

}  // namespace mate
