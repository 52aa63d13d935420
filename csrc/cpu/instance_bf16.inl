// What products of BF16 do faster than the kernels of avx512, which serve for the rest. An instance
// file defines MATE_ISA (the namespace), MATE_TILES (its tiles of products) and includes this.
#include "cpu/prelude.h"

namespace mate::cpu {
namespace avx512 {
extern const Kernels kKernels;
}

namespace MATE_ISA {
namespace {
// clang-format off
#include "cpu/simd_avx512.h"
#include MATE_TILES
#include "cpu/bf16_codes.inl"
#include "cpu/indexer.inl"
#include "cpu/indexer_bf16.inl"
// clang-format on

Kernels table() {
  Kernels kernels = avx512::kKernels;
  kernels.name = MATE_QUOTE(MATE_ISA);
  kernels.indexer_scores = indexer_scores;
  return kernels;
}
}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = table();
}  // namespace MATE_ISA
}  // namespace mate::cpu
