// 16-bit operands whose rows lie along k, which warpgroup products take as they are: in planes of
// 64 rows, 64 steps along k of 128 bytes each.
#pragma once

#include "gpu/sm90a/gemm_args.h"
#include "gpu/sm90a/gemm_shape.cuh"
#include "gpu/sm90a/ptx.cuh"

namespace mate::gpu::sm90a {

constexpr int kPlaneRows = 64, kPlaneSteps = 64;
constexpr int kPlaneBytes = kTurnedPlaneBytes;

// Planes from `row` on, one after the other.
__device__ __forceinline__ void load_planes(char* to, const CUtensorMap* map, Barrier* full,
                                            int planes, int row, int k, int z) {
  for (int i = 0; i < planes; ++i) {
    load_box(to + i * kPlaneBytes, map, full, row + i * kPlaneRows, k, z, kEvictNormal);
  }
}

// One warpgroup clears the steps from `left` on of a plane: what follows there is of other groups.
// Ordered before products by clear_done. All warpgroups clear what they share, each for itself.
__device__ __forceinline__ void clear_steps(uint32_t plane, int left) {
  for (int at = left * 128 + threadIdx.x % 128 * 16; at < kPlaneBytes; at += 128 * 16) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(plane + at), "r"(0) : "memory");
  }
}
__device__ __forceinline__ void clear_done(int wg) {
  fence_shared();
  sync_threads(2 + wg, 128);
}

}  // namespace mate::gpu::sm90a
