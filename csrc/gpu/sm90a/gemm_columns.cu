// Products with a scale of B for each column and block of k: 1 x 128 scales of both operands, and
// products over rows.
#include "gpu/sm90a/gemm_forms.cuh"

namespace mate::gpu::sm90a {
namespace {

template <DType a_type, DType b_type>
void launch(const Gemm& p, const Launch& launch) {
  launch_shape<ColumnsShape, a_type, b_type, ScaleMode::kColumns>(p, launch);
}

}  // namespace

void gemm_columns(const Gemm& p, const Launch& where) {
  constexpr DType kE4M3 = DType::kE4M3, kE5M2 = DType::kE5M2;
  if (p.a.type == kE4M3 && p.b.type == kE4M3) return launch<kE4M3, kE4M3>(p, where);
  if (p.a.type == kE4M3) return launch<kE4M3, kE5M2>(p, where);
  if (p.b.type == kE4M3) return launch<kE5M2, kE4M3>(p, where);
  launch<kE5M2, kE5M2>(p, where);
}

}  // namespace mate::gpu::sm90a
