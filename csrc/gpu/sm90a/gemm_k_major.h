// FP8 operands whose rows lie along k, brought into the one order that FP8 products take.
#pragma once

#include "gpu/gemm.h"
#include "gpu/scratch.h"

namespace mate::gpu::sm90a {

// A product of the same operands K-major, copied where they are not. The copies live until
// everything queued before their end has run. Where groups have ranges of k of their own, these
// start at multiples of 128, as their blocks of scales do; what is between them is zero.
class KMajor {
 public:
  KMajor(const Gemm& p, const Launch& launch);
  const Gemm& gemm() const { return gemm_; }

 private:
  Scratch memory_;
  Gemm gemm_;
};

}  // namespace mate::gpu::sm90a
