// What products of BF16 do faster than the kernels of avx512, which serve for the rest. An instance
// file defines MATE_ISA (the namespace), MATE_TILES and MATE_PRODUCTS (its tiles of products for
// the indexer and the GEMMs) and includes this.
#include "cpu/prelude.h"

namespace mate::cpu {
namespace avx512 {
const Kernels& table();
}

namespace MATE_ISA {
namespace {
// clang-format off
#include "cpu/simd_avx512.h"
#include "cpu/pack.inl"
#include MATE_TILES
#include "cpu/bf16_codes.inl"
#include "cpu/epilogue.inl"
#include "cpu/bf16_source.inl"
#include "cpu/bf16_panel.inl"
#include "cpu/bf16_products.inl"
#include MATE_PRODUCTS
#include "cpu/gemm_bf16.inl"
#include "cpu/gemm_units.inl"
#include "cpu/quant_rows.inl"
#include "cpu/slots.inl"
#include "cpu/moe_fused.inl"
#include "cpu/indexer.inl"
#include "cpu/indexer_bf16.inl"
#include "cpu/ceilings_bf16.inl"
// clang-format on

void grouped_gemm(const GroupedGemm& p) {
  if (!takes_bf16(p)) return avx512::table().grouped_gemm(p);
  multiply_grouped(p);
}

void fused_experts(const FusedExperts& p) {
  // What enters the down product is of this type, or FP8 codes.
  const bool inner_fits = p.quantises || fits_bf16(p.type);
  const bool takes = takes_bf16(p.gate) && takes_bf16(p.up) && inner_fits &&
                     fits_bf16(p.down.b.type) && p.down.b.k_stride == 1;
  if (!takes) return avx512::table().fused_experts(p);
  FusedLayer(p).run();
}

Kernels make_table() {
  Kernels kernels = avx512::table();
  kernels.name = MATE_QUOTE(MATE_ISA);
  kernels.grouped_gemm = grouped_gemm;
  kernels.fused_experts = fused_experts;
  kernels.packed = {fits_bf16, takes_bf16, PackedOrder::kPairs, true};
  kernels.indexer_scores = indexer_scores;
  kernels.pair_products = pair_products;
  kernels.tile_products = tile_products;
  return kernels;
}
}  // namespace

// Made when asked for: code that ran as the library is loaded would need this instruction set.
const Kernels& table();
const Kernels& table() {
  static const Kernels kernels = make_table();
  return kernels;
}
}  // namespace MATE_ISA
}  // namespace mate::cpu
