// Choosing a shape and launching it.
#pragma once

#include <algorithm>
#include <cmath>

#include "gpu/sm90a/gemm.cuh"
#include "gpu/sm90a/tensor_map.h"

namespace mate::gpu::sm90a {

using SmallShape = GemmShape<2, 1, 128, true, 1, 4>;
using NarrowShape = GemmShape<2, 1, 64, false, 1, 8>;
using WideShape = GemmShape<2, 1, 192, false, 1, 4>;
using TallShape = GemmShape<3, 1, 128, false, 2, 4>;
using PairsShape = GemmShape<2, 2, 128, false, 2, 3>;

template <typename Shape>
constexpr bool fits(TileForm form) {
  const TileCost& cost = cost_of(form);
  return cost.rows == Shape::kRows && cost.cols == Shape::kCols && cost.cluster == Shape::kCluster;
}
static_assert(fits<SmallShape>(TileForm::kSmall) && fits<NarrowShape>(TileForm::kNarrow) &&
              fits<WideShape>(TileForm::kWide) && fits<TallShape>(TileForm::kTall) &&
              fits<PairsShape>(TileForm::kPairs));

// Rows of tiles in a band: those that make what all blocks read at a time the least, and more where
// rows of A stay in the second-level cache, so that B is read once.
inline int band_of_tiles(const Gemm& p, int rows, int cols, int num_sms) {
  constexpr double kCached = 14 << 20;
  const double least = std::sqrt(double(num_sms) * cols / rows);
  const double cached = kCached / (double(rows) * p.k * size_of(p.a.type));
  const double most = std::ceil(double(p.rows.rows) / rows);
  return static_cast<int>(std::max(1.0, std::min(std::max(least, cached), most)));
}

template <typename Shape, ScaleMode mode>
GemmArgs arguments(const Gemm& p, int num_sms) {
  constexpr int kCluster = Shape::kCluster;
  const int64_t size = size_of(p.a.type);
  GemmArgs args{};
  args.rows = p.rows;
  args.n = static_cast<int>(p.n);
  args.k_size = static_cast<int>(size);
  args.k_blocks = static_cast<int>(ceil_div(p.k * size, kStepBytes));
  args.tiling = Tiling(static_cast<int>(ceil_div(p.n, Shape::kCols * kCluster)),
                       band_of_tiles(p, Shape::kRows, Shape::kCols, num_sms));
  args.a_box_rows = kCluster > 1 ? Shape::kRows / kCluster : Shape::kSideBySide ? 16 : Shape::kRows;
  if (Shape::kSplits) {
    // One box, as each holds up the warp that asks for it.
    args.a_box_rows = std::min(int64_t{Shape::kRows}, ceil_div(p.rows.rows, 16) * 16);
  }
  args.a_scale = p.a_scale;
  args.b_scale = p.b_scale;
  args.k = p.k;
  args.scale_blocks = p.scale_blocks;
  if (by_blocks(mode)) {
    args.scale_copy = scale_copy(p);
    const bool along_k = args.scale_copy == ScaleCopy::kBoxesAlongK;
    if (args.scale_copy != ScaleCopy::kWords) {
      const int rows = Shape::kRows;
      args.a_scales = tensor_map(
          a_scale_box(p, along_k ? kScaleSteps : rows, along_k ? rows : kScaleSteps, along_k));
      args.b_scales =
          tensor_map(mode == ScaleMode::kColumns ? b_column_scale_box(p, Shape::kCols, kScaleSteps)
                                                 : b_scale_box(p, kScaleSteps, Shape::kColBlocks));
    }
  }
  args.out = p.out;
  args.signal = p.signal;
  const int step = kStepBytes / static_cast<int>(size);
  if (Shape::kTurnedA) args.a_box_rows = kPlaneRows;
  args.a = tensor_map(Shape::kTurnedA ? turned_a_box(p, kPlaneRows, step)
                                      : a_box(p, step, args.a_box_rows));
  TensorBox b = Shape::kTurnedB ? turned_b_box(p, kPlaneRows, step) : b_box(p, step, Shape::kCols);
  b.swizzles = !Shape::kWidens;
  args.b = tensor_map(b);

  const TensorBox out = out_box(p, 64, OutStage::kRows);
  args.out_boxes = size_of(p.out.type) == 2 && is_aligned(out);
  if (args.out_boxes) args.out_map = tensor_map(out);
  return args;
}

// How a kernel is launched: `cluster` blocks along x start together.
template <typename Shape>
struct Grid {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute size;

  Grid(void (*kernel)(GemmArgs), dim3 blocks, int cluster, int bytes, cudaStream_t stream) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "shared memory of a GEMM");
    config.gridDim = blocks;
    config.blockDim = dim3(Shape::kThreads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    config.attrs = &size;
    config.numAttrs = cluster > 1 ? 1 : 0;
  }
  Grid(const Grid&) = delete;
};

template <typename Shape>
void launch_clusters(void (*kernel)(GemmArgs), const GemmArgs& args, dim3 blocks, int cluster,
                     const Launch& launch) {
  const int bytes = Shape::kBytes + GroupTable::bytes(args.rows);
  const Grid<Shape> grid(kernel, blocks, cluster, bytes, launch.stream);
  check(cudaLaunchKernelEx(&grid.config, kernel, args), "GEMM");
}

template <typename Shape, DType a_type, DType b_type, ScaleMode mode>
void launch_shape(const Gemm& p, const Launch& launch) {
  constexpr int kCluster = Shape::kCluster;
  launch_clusters<Shape>(gemm_kernel<Shape, a_type, b_type, mode>,
                         arguments<Shape, mode>(p, launch.num_sms),
                         dim3(std::max(1, launch.num_sms / kCluster) * kCluster), kCluster, launch);
}

template <DType a_type, DType b_type, ScaleMode mode>
void launch_form(const Gemm& p, const Launch& launch) {
  switch (tile_form(p, launch.num_sms)) {
    case TileForm::kSmall:
      return launch_shape<SmallShape, a_type, b_type, mode>(p, launch);
    case TileForm::kNarrow:
      return launch_shape<NarrowShape, a_type, b_type, mode>(p, launch);
    case TileForm::kWide:
      return launch_shape<WideShape, a_type, b_type, mode>(p, launch);
    case TileForm::kTall:
      return launch_shape<TallShape, a_type, b_type, mode>(p, launch);
    case TileForm::kPairs:
      if constexpr (mode != ScaleMode::kEnd) {
        return launch_shape<PairsShape, a_type, b_type, mode>(p, launch);
      }
  }
}

}  // namespace mate::gpu::sm90a
