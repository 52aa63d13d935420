// Grouped products on a GPU: what mate::GroupedGemm tells on a CPU, with the groups still in device
// memory, where the host does not read them.
#pragma once

#include "gpu/launch.h"
#include "params.h"

namespace mate::gpu {

// Which rows belong to which group.
enum class RowMode : int {
  kBatched,    // group g has all rows of A[g] (or of A, where there is one group)
  kPerToken,   // info[row] is the group of each row, or outside [0, num_groups)
  kPsum,       // info[g] is the end of group g, which starts at the aligned end of the one before
  kPerExpert,  // info[g] is the count of group g; groups follow one another
  kMasked,     // group g has the first info[g] rows of A[g]
  kRaggedK,    // all rows; info[g] is the length of group g along k, its scale blocks start anew
};

struct Rows {
  RowMode mode;
  const int32_t* info;  // device memory
  int64_t info_stride;
  int64_t num_groups;
  int64_t rows;          // of A, or of A[g]
  int64_t alignment;     // kPerToken, kPsum
  int64_t expected = 0;  // kMasked: rows of a group that the caller expects, or 0
};

// Contents of info are cut to what exists and never followed outside. k is that of all groups
// together in kRaggedK; scale_blocks is the number of rows of the scales there.
struct Gemm {
  Operand a, b;
  Scales a_scale, b_scale;
  Output out;
  Signal signal;
  Rows rows;
  int64_t n, k;
  int64_t scale_blocks;
};

// Rows and columns of a block in which the overlap signal counts.
struct SignalUnits {
  int64_t m, n;
};

void portable_gemm(const Gemm& p, const Launch& launch);

// Rows and columns of a block in which the portable kernel counts the overlap signal.
constexpr int64_t kPortableBlockM = 64, kPortableBlockN = 64;

// Why the sm_90a kernels cannot serve a product, or null.
const char* sm90a_gemm_unfit(const Gemm& p);
void sm90a_gemm(const Gemm& p, const Launch& launch);
SignalUnits sm90a_signal_units(const Gemm& p, const Launch& launch);

}  // namespace mate::gpu
