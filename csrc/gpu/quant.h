// SwiGLU and per-group FP8 quantisation of rows, together or apart.
#pragma once

#include "gpu/launch.h"
#include "piece_params.h"

namespace mate::gpu {

void silu_and_mul(const SiluAndMul& p, const Launch& launch);
void quantise(const Quantise& p, const Launch& launch);

}  // namespace mate::gpu
