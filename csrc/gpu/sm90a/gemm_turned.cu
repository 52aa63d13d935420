// 16-bit products with B, or both operands, stored by rows along k.
#include "gpu/sm90a/gemm_forms.cuh"

namespace mate::gpu::sm90a {
namespace {

template <DType type>
void launch_type(const Gemm& p, const Launch& launch) {
  if (p.a.k_stride != 1) {
    return launch_shape<TurnedShape, type, type, ScaleMode::kNone>(p, launch);
  }
  launch_shape<TurnedBShape, type, type, ScaleMode::kNone>(p, launch);
}

}  // namespace

void gemm_turned(const Gemm& p, const Launch& launch) {
  if (p.a.type == DType::kBF16) return launch_type<DType::kBF16>(p, launch);
  launch_type<DType::kF16>(p, launch);
}

}  // namespace mate::gpu::sm90a
