// Sums of a warp to the output.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gpu/sm90a/gemm_args.h"
#include "gpu/sm90a/ptx.cuh"

namespace mate::gpu::sm90a {

template <DType type>
__device__ __forceinline__ uint32_t pack_pair(float x, float y) {
  uint32_t bits;
  if constexpr (type == DType::kBF16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(y), "f"(x));
  } else {
    static_assert(type == DType::kF16);
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(y), "f"(x));
  }
  return bits;
}

// 64 rows of 64 columns of 16 bits, rows of 128 bytes whose 16-byte parts are exchanged by row, as
// the copy engine does it: neither side meets a bank twice. A warp has 16 of the rows.
struct OutStage {
  static constexpr int kRows = 64, kBytes = kRows * 128, kWarpBytes = 16 * 128;
  uint32_t base;  // of the warp's rows

  __device__ uint32_t part(int row, int i) const { return base + row * 128 + (i ^ row % 8) * 16; }

  // Columns [16 j, 16 j + 16) of all rows, as the sums of a warpgroup product lie.
  __device__ void put(int j, int lane, const uint32_t (&pairs)[4]) const {
    const uint32_t to = part(lane % 16, lane / 16) ^ j * 32;  // part(lane % 16, 2 j + lane / 16)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                 : "memory");
  }

  __device__ uint4 get(int row, int i) const {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(part(row, i))
                 : "memory");
    return v;
  }
};

// 8 columns of a row of the output; aligned: 16 bytes can be written at once.
__device__ __forceinline__ void put_part(const GemmArgs& p, char* data, int64_t row, int c, uint4 v,
                                         bool aligned) {
  auto* to = reinterpret_cast<uint16_t*>(data) + row * p.out.row_stride + c;
  if (aligned && c + 8 <= p.n) {
    *reinterpret_cast<uint4*>(to) = v;
    return;
  }
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (c + i < p.n) to[i] = static_cast<uint16_t>(words[i / 2] >> i % 2 * 16);
  }
}

// Whether rows of 16-bit results begin at multiples of 16 bytes.
__device__ __forceinline__ bool has_aligned_rows(const Output& out, const char* data) {
  return out.row_stride * 2 % 16 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// What a warp writes: 16 rows, of which `rows` are there, from `row` and `col` on. Sums of `count`
// a lane are 2 count columns and pass through an OutStage for each 64 of them.
template <int count>
struct OutTile {
  static constexpr int kParts = count / 32;
  const GemmArgs& p;
  int64_t group;
  int row, rows, col;

  __device__ void stage(const float (&sums)[count], uint32_t stages, int lane) const {
    if (rows <= 0) return;
    switch (p.out.type) {
      case DType::kBF16:
        return stage_as<DType::kBF16>(sums, stages, lane);
      case DType::kF16:
        return stage_as<DType::kF16>(sums, stages, lane);
      default:
        return put_floats(sums, lane);
    }
  }

  // What the copy engine does not take. All lanes have staged their part.
  __device__ void store(uint32_t stages, int lane) const {
    if (rows <= 0 || p.out.type == DType::kF32) return;
    char* to = data();
    const bool aligned = has_aligned_rows(p.out, to);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const OutStage stage{stages + part * OutStage::kBytes};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = i * 4 + lane / 8, c = col + part * 64 + lane % 8 * 8;
        if (r < rows && c < p.n) {
          put_part(p, to, int64_t{row} + r, c, stage.get(r, lane % 8), aligned);
        }
      }
    }
  }

  // Of the group.
  __device__ char* data() const {
    return static_cast<char*>(p.out.data) + group * p.out.group_stride * size_of(p.out.type);
  }

 private:
  template <DType type>
  __device__ void stage_as(const float (&sums)[count], uint32_t stages, int lane) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const OutStage stage{stages + part * OutStage::kBytes};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* d = sums + part * 32 + j * 8;
        stage.put(j, lane,
                  {pack_pair<type>(d[0], d[1]), pack_pair<type>(d[2], d[3]),
                   pack_pair<type>(d[4], d[5]), pack_pair<type>(d[6], d[7])});
      }
    }
  }

  __device__ void put_floats(const float (&sums)[count], int lane) const {
    auto* to = reinterpret_cast<float*>(data());
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int r = lane / 4 + i % 4 / 2 * 8, c = col + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (r < rows && c < p.n) to[(int64_t{row} + r) * p.out.row_stride + c] = sums[i];
    }
  }
};

}  // namespace mate::gpu::sm90a
