#include <array>
#include <atomic>

#include "gpu/sm90a/gemm_split.cuh"

namespace mate::gpu::sm90a {
namespace {

template <typename Shape>
void launch_split(const Gemm& p, int parts, const Launch& launch) {
  constexpr DType kType = DType::kE4M3;
  const int64_t row_tiles = p.rows.num_groups * ceil_div(p.rows.rows, Shape::kRows);
  launch_clusters<Shape>(split_kernel<Shape, kType, kType>,
                         arguments<Shape, ScaleMode::kBlocks>(p, launch.num_sms),
                         dim3(parts, row_tiles, ceil_div(p.n, Shape::kCols)), parts, launch);
}

// Asked for once, as it takes microseconds.
constexpr int kDevices = 64;
std::array<std::array<std::atomic<int>, kMostParts>, kDevices> known_clusters;

}  // namespace

int clusters_at_once(int parts) {
  int device = 0, clusters = 0;
  check(cudaGetDevice(&device), "the current device");
  std::atomic<int>* known = device < kDevices ? &known_clusters[device][parts - 1] : nullptr;
  if (known && (clusters = known->load(std::memory_order_relaxed)) > 0) return clusters;
  auto* kernel = split_kernel<SplitShape, DType::kE4M3, DType::kE4M3>;
  const Grid<SplitShape> grid(kernel, dim3(parts), parts, SplitShape::kBytes, nullptr);
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &grid.config), "clusters at once");
  if (known) known->store(clusters, std::memory_order_relaxed);
  return clusters;
}

void gemm_split(const Gemm& p, const Split& split, const Launch& launch) {
  if (split.rows == SplitShape::kRows) return launch_split<SplitShape>(p, split.parts, launch);
  launch_split<SplitSmallShape>(p, split.parts, launch);
}

}  // namespace mate::gpu::sm90a
