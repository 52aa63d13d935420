// Everything one instruction set offers. An instance file defines MATE_ISA (the namespace),
// MATE_SIMD (its vector operations) and includes this.
#include "cpu/prelude.h"

// A namespace of its own for each instruction set: the linker must never merge their templates.
namespace mate::cpu::MATE_ISA {
namespace {
// clang-format off
#include MATE_SIMD
#include "cpu/pack.inl"
#include "cpu/epilogue.inl"
#include "cpu/gemm_tiles.inl"
#include "cpu/gemm_packed.inl"
#include "cpu/gemm.inl"
#include "cpu/gemm_units.inl"
#include "cpu/indexer.inl"
#include "cpu/indexer_f32.inl"
#include "cpu/radix.inl"
#include "cpu/topk.inl"
#include "cpu/quant_rows.inl"
#include "cpu/quant.inl"
#include "cpu/indexer_cache.inl"
#include "cpu/slots.inl"
#include "cpu/moe.inl"
#include "cpu/moe_fused.inl"
#include "cpu/mla_tiles.inl"
#include "cpu/sparse_mla.inl"
#include "cpu/ceilings.inl"
// clang-format on

bool packs(DType type) { return type == DType::kE4M3 && reads_packed(); }

bool takes_packed(const GroupedGemm& p) {
  if (!packs(p.b.type) || (scales_by_column(p) && p.b_scale.k_stride != 0)) return false;
  return std::all_of(p.groups, p.groups + p.num_groups,
                     [](const Group& g) { return g.k_first == 0; });
}

void grouped_gemm(const GroupedGemm& p) { multiply_grouped(p); }
void fused_experts(const FusedExperts& p) { FusedLayer(p).run(); }

constexpr Kernels kKernels{
    MATE_QUOTE(MATE_ISA),
    grouped_gemm,
    fused_experts,
    {packs, takes_packed, PackedOrder::kBytes, false},
    indexer_scores,
    top_k,
    silu_and_mul,
    quantise,
    permute,
    unpermute,
    quantise_keys,
    sparse_mla,
    multiply_adds,
    nullptr,
    nullptr,
    read_memory,
};
}  // namespace

const Kernels& table();
const Kernels& table() { return kKernels; }
}  // namespace mate::cpu::MATE_ISA
