// Products with e5m2 operands: rare, so in one shape.
#include "gpu/sm90a/gemm_launch.cuh"

namespace mate::gpu::sm90a {
namespace {

template <DType a_type, DType b_type>
void launch_types(const Gemm& p, const Launch& launch) {
  if (scale_mode(p) == ScaleMode::kBlocks) {
    return launch_shape<WideShape, a_type, b_type, ScaleMode::kBlocks>(p, launch);
  }
  launch_shape<WideShape, a_type, b_type, ScaleMode::kEnd>(p, launch);
}

}  // namespace

void gemm_mixed_fp8(const Gemm& p, const Launch& launch) {
  constexpr DType kE4M3 = DType::kE4M3, kE5M2 = DType::kE5M2;
  if (p.a.type == kE4M3) return launch_types<kE4M3, kE5M2>(p, launch);
  if (p.b.type == kE4M3) return launch_types<kE5M2, kE4M3>(p, launch);
  launch_types<kE5M2, kE5M2>(p, launch);
}

}  // namespace mate::gpu::sm90a
