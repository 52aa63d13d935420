// Choosing a shape and launching it.
#pragma once

#include "gpu/sm90a/gemm.cuh"
#include "gpu/sm90a/tensor_map.h"

namespace mate::gpu::sm90a {

// Height and width of tiles by the rows that groups have.
using LargeShape = GemmShape<2, 128, false, 1, 3>;   // 256 x 128
using PairsShape = GemmShape<2, 128, false, 2, 3>;   // the same, pairs share A
using MediumShape = GemmShape<1, 128, false, 1, 5>;  // 128 x 128
using SmallShape = GemmShape<1, 128, true, 1, 4>;    // 64 x 256

template <typename Shape, DType a_type, DType b_type, ScaleMode mode>
void launch_shape(const Gemm& p, const Launch& launch) {
  constexpr int kCluster = Shape::kCluster;
  const int64_t size = size_of(a_type);
  GemmArgs args{};
  args.rows = p.rows;
  args.n = static_cast<int>(p.n);
  args.k_size = static_cast<int>(size);
  args.k_blocks = static_cast<int>(ceil_div(p.k * size, kStepBytes));
  args.n_tiles = static_cast<int>(ceil_div(p.n, Shape::kCols * kCluster));
  args.a_box_rows = kCluster > 1 ? Shape::kRows / kCluster : Shape::kSideBySide ? 16 : Shape::kRows;
  args.a_scale = p.a_scale;
  args.b_scale = p.b_scale;
  if (mode == ScaleMode::kBlocks) {
    args.scale_copy = scale_copy(p);
    const bool along_k = args.scale_copy == ScaleCopy::kBoxesAlongK;
    if (args.scale_copy != ScaleCopy::kWords) {
      const int rows = Shape::kRows;
      args.a_scales = tensor_map(
          a_scale_box(p, along_k ? kScaleSteps : rows, along_k ? rows : kScaleSteps, along_k));
      args.b_scales = tensor_map(b_scale_box(p, kScaleSteps, Shape::kColBlocks));
    }
  }
  args.out = p.out;
  args.signal = p.signal;
  const int step = kStepBytes / static_cast<int>(size);
  args.a = tensor_map(a_box(p, step, args.a_box_rows));
  args.b = tensor_map(b_box(p, step, Shape::kCols));

  const TensorBox out = out_box(p, 64, 16);
  args.out_boxes = p.out.type != DType::kF32 && is_aligned(out);
  if (args.out_boxes) args.out_map = tensor_map(out);

  const int bytes = Shape::kBytes + GroupTable::bytes(p.rows);
  auto* kernel = gemm_kernel<Shape, a_type, b_type, mode>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "shared memory of a GEMM");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(std::max(1, launch.num_sms / kCluster) * kCluster);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = launch.stream;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kCluster, 1, 1};
  config.attrs = &cluster;
  config.numAttrs = kCluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args), "GEMM");
}

template <DType a_type, DType b_type, ScaleMode mode>
void launch_height(const Gemm& p, const Launch& launch) {
  switch (tile_height(p)) {
    case Height::kPairs:
      return launch_shape<PairsShape, a_type, b_type, mode>(p, launch);
    case Height::kLarge:
      return launch_shape<LargeShape, a_type, b_type, mode>(p, launch);
    case Height::kMedium:
      return launch_shape<MediumShape, a_type, b_type, mode>(p, launch);
    case Height::kSmall:
      return launch_shape<SmallShape, a_type, b_type, mode>(p, launch);
  }
}

}  // namespace mate::gpu::sm90a
