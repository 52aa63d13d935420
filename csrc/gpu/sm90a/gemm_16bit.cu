#include "gpu/sm90a/gemm_launch.cuh"

namespace mate::gpu::sm90a {

void gemm_16bit(const Gemm& p, const Launch& launch) {
  constexpr DType kBF16 = DType::kBF16, kF16 = DType::kF16;
  if (p.a.type == kBF16) return launch_form<kBF16, kBF16, ScaleMode::kNone>(p, launch);
  launch_form<kF16, kF16, ScaleMode::kNone>(p, launch);
}

}  // namespace mate::gpu::sm90a
