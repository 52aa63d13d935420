// 16-bit rows with FP8 weights.
#include "gpu/sm90a/gemm_forms.cuh"

namespace mate::gpu::sm90a {
namespace {

template <DType type>
void launch_type(const Gemm& p, const Launch& launch) {
  if (p.b.type == DType::kE4M3) {
    return launch_shape<WideningShape, type, DType::kE4M3, ScaleMode::kNone>(p, launch);
  }
  launch_shape<WideningShape, type, DType::kE5M2, ScaleMode::kNone>(p, launch);
}

}  // namespace

void gemm_w8a16(const Gemm& p, const Launch& launch) {
  if (p.a.type == DType::kBF16) return launch_type<DType::kBF16>(p, launch);
  launch_type<DType::kF16>(p, launch);
}

}  // namespace mate::gpu::sm90a
