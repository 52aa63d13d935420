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
#ifdef __AMX_BF16__
#include MATE_TILES
#endif
#include "cpu/pack.inl"
#include "cpu/epilogue.inl"
#include "cpu/bf16_panel.inl"
#include "cpu/bf16_products.inl"
#include "cpu/gemm_bf16.inl"
// clang-format on
}  // namespace

// Called where the machine has the instructions: nothing of this file may run before.
void take(Kernels& kernels) { kernels.grouped_gemm = grouped_gemm; }
}  // namespace MATE_ISA
}  // namespace mate::cpu
