// Products whose output is more than they are.
#include "gpu/sm90a/gemm_forms.cuh"

namespace mate::gpu::sm90a {
namespace {

template <DType a_type, DType b_type>
void launch_fp8(const Gemm& p, const Launch& launch) {
  if (scale_mode(p) == ScaleMode::kBlocks) {
    return launch_shape<FinishingShape, a_type, b_type, ScaleMode::kBlocks>(p, launch);
  }
  launch_shape<FinishingShape, a_type, b_type, ScaleMode::kEnd>(p, launch);
}

template <DType type>
void launch_16bit(const Gemm& p, const Launch& launch) {
  launch_shape<FinishingShape, type, type, ScaleMode::kNone>(p, launch);
}

}  // namespace

void gemm_finishing(const Gemm& p, const Launch& launch) {
  constexpr DType kE4M3 = DType::kE4M3, kE5M2 = DType::kE5M2;
  if (p.a.type == DType::kBF16) return launch_16bit<DType::kBF16>(p, launch);
  if (p.a.type == DType::kF16) return launch_16bit<DType::kF16>(p, launch);
  if (p.a.type == kE4M3 && p.b.type == kE4M3) return launch_fp8<kE4M3, kE4M3>(p, launch);
  if (p.a.type == kE4M3) return launch_fp8<kE4M3, kE5M2>(p, launch);
  if (p.b.type == kE4M3) return launch_fp8<kE5M2, kE4M3>(p, launch);
  launch_fp8<kE5M2, kE5M2>(p, launch);
}

}  // namespace mate::gpu::sm90a
