#include "gpu/sm90a/gemm_launch.cuh"

namespace mate::gpu::sm90a {

void gemm_e4m3(const Gemm& p, const Launch& launch) {
  constexpr DType kType = DType::kE4M3;
  if (scale_mode(p) == ScaleMode::kBlocks) {
    return launch_form<kType, kType, ScaleMode::kBlocks>(p, launch);
  }
  launch_form<kType, kType, ScaleMode::kEnd>(p, launch);
}

}  // namespace mate::gpu::sm90a
