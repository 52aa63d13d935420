// What products of BF16 do faster than the kernels of avx512, which serve for the rest. An instance
// file defines MATE_ISA (the namespace) and includes this.
#include "cpu/prelude.h"

namespace mate::cpu {
namespace avx512 {
extern const Kernels kKernels;
}

namespace MATE_ISA {
namespace {
// clang-format off
#include "cpu/simd_avx512.h"
// clang-format on

Kernels table() {
  Kernels kernels = avx512::kKernels;
  kernels.name = MATE_QUOTE(MATE_ISA);
  return kernels;
}
}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = table();
}  // namespace MATE_ISA
}  // namespace mate::cpu
