// Sums of a warp to the output.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gpu/sm90a/gemm_args.h"
#include "gpu/sm90a/ptx.cuh"

namespace mate::gpu::sm90a {

__device__ __forceinline__ uint32_t pack_pair(DType type, float x, float y) {
  uint32_t bits;
  if (type == DType::kBF16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(y), "f"(x));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(y), "f"(x));
  }
  return bits;
}

// 16 rows of 64 columns of 16 bits, rows of 128 bytes whose 16-byte parts are exchanged by row, as
// the copy engine does it: neither side meets a bank twice.
struct WarpStage {
  static constexpr int kBytes = 16 * 128;
  uint32_t base;

  __device__ uint32_t part(int row, int i) const { return base + row * 128 + (i ^ row % 8) * 16; }

  // Columns [16 j, 16 j + 16) of all rows, as the sums of a warpgroup product lie.
  __device__ void put(int j, int lane, const uint32_t (&pairs)[4]) const {
    const uint32_t to = part(lane % 16, 2 * j + lane / 16);
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

// What a warp writes: 16 rows, of which `rows` are there, from `row` and `col` on.
struct OutTile {
  const CUtensorMap* map;  // for the copy engine, or null
  int64_t group;
  char* data;  // of the group
  DType type;
  int64_t row_stride, row;
  int rows, col, n;
  bool aligned;  // 16 bytes can be written at once

  __device__ OutTile(const GemmArgs& p, int64_t group, int64_t row, int rows, int col)
      : map(p.out_boxes && rows >= 16 ? &p.out_map : nullptr),
        group(group),
        data(static_cast<char*>(p.out.data) + group * p.out.group_stride * size_of(p.out.type)),
        type(p.out.type),
        row_stride(p.out.row_stride),
        row(row),
        rows(rows),
        col(col),
        n(p.n),
        aligned(row_stride * size_of(type) % 16 == 0 &&
                reinterpret_cast<uintptr_t>(data) % 16 == 0) {}

  // sums[count] are 2 count columns; stages: a WarpStage for each 64 of them, which nothing reads
  // any more.
  template <int count>
  __device__ void put(const float (&sums)[count], uint32_t stages, int lane) const {
    if (rows <= 0) return;
    if (type == DType::kF32) return put_floats(sums, lane);
    constexpr int kParts = count / 32;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const WarpStage stage{stages + part * WarpStage::kBytes};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* d = sums + part * 32 + j * 8;
        stage.put(j, lane,
                  {pack_pair(type, d[0], d[1]), pack_pair(type, d[2], d[3]),
                   pack_pair(type, d[4], d[5]), pack_pair(type, d[6], d[7])});
      }
    }
    if (map != nullptr) {
      fence_shared();
      __syncwarp();
      if (lane < kParts && col + lane * 64 < n) {
        store_box(map, stages + lane * WarpStage::kBytes, col + lane * 64, static_cast<int>(row),
                  static_cast<int>(group));
      }
      commit_stores();
      return;
    }
    __syncwarp();
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const WarpStage stage{stages + part * WarpStage::kBytes};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = i * 4 + lane / 8, c = col + part * 64 + lane % 8 * 8;
        if (r < rows && c < n) put_part(r, c, stage.get(r, lane % 8));
      }
    }
  }

 private:
  __device__ void put_part(int r, int c, uint4 v) const {
    auto* to = reinterpret_cast<uint16_t*>(data) + (row + r) * row_stride + c;
    if (aligned && c + 8 <= n) {
      *reinterpret_cast<uint4*>(to) = v;
      return;
    }
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (c + i < n) to[i] = static_cast<uint16_t>(words[i / 2] >> i % 2 * 16);
    }
  }

  template <int count>
  __device__ void put_floats(const float (&sums)[count], int lane) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int r = lane / 4 + i % 4 / 2 * 8, c = col + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (r < rows && c < n) reinterpret_cast<float*>(data)[(row + r) * row_stride + c] = sums[i];
    }
  }
};

}  // namespace mate::gpu::sm90a
