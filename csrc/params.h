// Arguments of the kernels as plain structs: what a device implementation needs and nothing of
// the caller's tensor library. Strides count elements. Offsets are 64-bit throughout.
#pragma once

#include <cstdint>
#ifdef __MUSACC__
#include <musa_runtime.h>  // names the attributes
#endif

// Before functions that kernels on a GPU call too.
#if defined(__CUDACC__) || defined(__MUSACC__)
#define MATE_ANYWHERE __host__ __device__
#else
#define MATE_ANYWHERE
#endif

namespace mate {

// Tags that Python passes beside each operand, since an old torch hands FP8 tensors over as bytes.
enum class DType : int32_t { kE4M3 = 0, kE5M2 = 1, kBF16 = 2, kF16 = 3, kF32 = 4 };

MATE_ANYWHERE constexpr int64_t size_of(DType type) {
  return type <= DType::kE5M2 ? 1 : type == DType::kF32 ? 4 : 2;
}

MATE_ANYWHERE inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One operand of a grouped product: element (g, r, k) sits at
// data + g * group_stride + r * row_stride + k * k_stride. Packed, that is true of the first of
// each kPackedRows rows only, whose elements are laid out as cpu/packing.h tells.
struct Operand {
  const void* data;
  DType type;
  int64_t group_stride, row_stride, k_stride;
  bool packed = false;
};

constexpr int64_t kPackedRows = 16;

// Scale of element (g, r, k) is data[g * group_stride + r / row_block * row_stride +
// k / k_block * k_stride]; data is null where the operand has no scales.
struct Scales {
  const float* data;
  int64_t group_stride, row_stride, k_stride;
  int64_t row_block, k_block;
};

// Rows of one group. The rows of A and of the output are `first + i`, or `rows[i]` with an index.
// The k range of a group starts at k_first (and its scale blocks at k_block_first): only
// ragged-k products use other values than 0 and the common k.
struct Group {
  int64_t weight;        // which B, which B scales
  int64_t first, count;  // rows
  const int32_t* rows;   // [count] or null
  int64_t a_group;       // which A and out matrix; 0 where all groups share one
  int64_t k_first, k, k_block_first;
};

// out[g, r, n] = sum_k A[g, r, k] B[g, n, k], then (+ c) / divisor, then rounded to `type`.
struct Output {
  void* data;
  DType type;
  int64_t group_stride, row_stride;  // last dimension contiguous
  bool accumulate = false;           // out += product (float32 only)
  Operand c = {};                    // data null: none; k_stride counts along n
  const float* divisor = nullptr;    // null: none
  float* scale = nullptr;            // [rows, ceil(n / 128)] written as amax / 448; null: none
  int64_t scale_stride = 0;
};

// Progress of finished row blocks for a consumer that overlaps with the product.
struct Signal {
  int32_t* data;      // null: none
  int64_t per_group;  // row blocks of a group
};

struct GroupedGemm {
  Operand a, b;
  Scales a_scale, b_scale;
  Output out;
  Signal signal;
  const Group* groups;
  int64_t num_groups;
  int64_t n;
  int num_threads;
};

// Row and column block of one unit of work; the overlap signal counts in these.
constexpr int64_t kBlockM = 128;
constexpr int64_t kBlockN = 128;

}  // namespace mate
