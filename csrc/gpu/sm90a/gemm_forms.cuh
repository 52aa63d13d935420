// Shapes of the rarer forms, one for each.
#pragma once

#include "gpu/sm90a/gemm_launch.cuh"

namespace mate::gpu::sm90a {

// Outputs of any kind: gemm_finish.cuh.
struct FinishingShape : GemmShape<2, 1, 128, false, 1, 5> {
  static constexpr bool kFinishes = true;
};

// Scales of B by column, and groups that share rows. Two multiplications a sum take longer than the
// products do: a third warpgroup keeps the tensor cores busy meanwhile.
struct ColumnsShape : GemmShape<3, 1, 128, false, 2, 4, 1> {
  static constexpr int kProducerRegisters = 56, kConsumerRegisters = 152;
  static constexpr bool kFinishes = true, kRaggedK = true;
};

// Operands whose rows lie along k: B alone, or both.
struct TurnedBShape : GemmShape<2, 1, 128, false, 1, 5> {
  static constexpr bool kTurnedB = true, kFinishes = true;
};
struct TurnedShape : GemmShape<2, 2, 128, false, 1, 3> {
  static constexpr bool kTurnedA = true, kTurnedB = true, kFinishes = true, kRaggedK = true;
};

// 16-bit rows with FP8 weights.
struct WideningShape : GemmShape<2, 1, 128, false, 1, 5> {
  static constexpr bool kFinishes = true, kWidens = true;
};

template <typename Shape>
constexpr bool is_tile_of(SignalUnits tile) {
  return tile.m == Shape::kRows && tile.n == Shape::kCols;
}
static_assert(is_tile_of<ColumnsShape>(kColumnsTile) && is_tile_of<FinishingShape>(kFormTile) &&
              is_tile_of<TurnedBShape>(kFormTile) && is_tile_of<WideningShape>(kFormTile));

// Shared memory has room for tables of as many groups.
template <typename Shape>
constexpr bool holds(int groups) {
  return Shape::kBytes + (3 * groups + 1) * 4 <= 227 << 10;
}
static_assert(holds<ColumnsShape>(320) && holds<FinishingShape>(512) && holds<TurnedBShape>(512) &&
              holds<TurnedShape>(512) && holds<WideningShape>(512));

}  // namespace mate::gpu::sm90a
