// Scores of the lightning indexer on Hopper. Each block takes an equal run of the list of all tiles
// of keys: warps copy tiles ahead, warpgroups multiply them and add up over heads.
#pragma once

#include "gpu/sm90a/indexer_clean.cuh"
#include "gpu/sm90a/indexer_copies.cuh"
#include "gpu/sm90a/indexer_products.cuh"

namespace mate::gpu::sm90a {

// Registers of a thread when the block's 64 Ki are shared out anew; 0: as launched.
template <typename S>
constexpr int kConsumerRegisters = S::kGroups > 1     ? 216
                                   : S::kColumns > 64 ? 144
                                                      : 0;
template <typename S>
constexpr int kProducerRegisters = S::kGroups > 1 ? 72 : 80;

template <typename S, typename Items>
__global__ void __launch_bounds__(S::kThreads, 1)
    score_kernel(const __grid_constant__ ScoreArgs<Items> p) {
  extern __shared__ __align__(1024) char memory[];
  const ScoreShared<S> shared{memory};
  ScoreNotes<S>& notes = shared.notes();
  constexpr int kConsumerWarps = S::kWarpgroups * 4;
  const int warp = threadIdx.x / 32 - kConsumerWarps, lane = threadIdx.x % 32;
  if (warp == S::kRings && lane == 0) {
    prefetch_map(&p.queries);
    prefetch_map(&p.keys);
    prefetch_map(&p.key_scales);
#pragma unroll
    for (int i = 0; i < ScoreShared<S>::kStages; ++i) {
      init_barrier(&notes.full[i], 1);
      init_barrier(&notes.empty[i], S::kSplitsRows ? kConsumerWarps : 4);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      init_barrier(&notes.items_full[i], 1 + 32);
      init_barrier(&notes.items_empty[i], kConsumerWarps);
    }
    notes.items_begun = 2;
    fence_barrier_init();
  }
  if (warp < 2 - kConsumerWarps) prefetch_places(p.items, blockIdx.x * 64 + threadIdx.x);
  // Its barriers are what makes the initialised ones known to all threads.
  const Share share = find_share<S::kThreads>(p.items, notes.share);

  if (warp >= 0) {
    if constexpr (kConsumerRegisters<S> > 0) fewer_registers<kProducerRegisters<S>>();
    if (warp < S::kRings) {
      copy_tiles(p, shared, share, warp);
    } else {
      if (warp == S::kRings) copy_items(p, shared, share);
      constexpr int kOthers = 4 - S::kRings;
      if (p.clean) clean_rows(p, (warp - S::kRings) * gridDim.x + blockIdx.x, kOthers * gridDim.x);
    }
  } else {
    if constexpr (kConsumerRegisters<S> > 0) more_registers<kConsumerRegisters<S>>();
    Scorer<S, Items>(p, shared).run(share.count);
  }
}

template <typename S, typename Items>
void launch_scores(const ScoreArgs<Items>& p, const Launch& launch) {
  const auto kernel = score_kernel<S, Items>;
  constexpr int kBytes = ScoreShared<S>::kBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "indexer scores");
  kernel<<<launch.num_sms, S::kThreads, kBytes, launch.stream>>>(p);
  check_launch("indexer scores");
}

template <int depth, typename Items>
void launch_shape(const ScoreShape& shape, const ScoreArgs<Items>& p, const Launch& launch) {
  const auto is = [&](int columns, int groups, int row_heads, bool splits_rows) {
    return shape.columns == columns && shape.groups == groups && shape.row_heads == row_heads &&
           shape.splits_rows == splits_rows;
  };
  if (is(32, 1, 32, false)) return launch_scores<Shape<depth, 32, 1, 32, false>>(p, launch);
  if (is(64, 1, 32, false)) return launch_scores<Shape<depth, 64, 1, 32, false>>(p, launch);
  if (is(128, 1, 32, false)) return launch_scores<Shape<depth, 128, 1, 32, false>>(p, launch);
  if (is(128, 2, 32, false)) return launch_scores<Shape<depth, 128, 2, 32, false>>(p, launch);
  if (is(128, 1, 32, true)) return launch_scores<Shape<depth, 128, 1, 32, true>>(p, launch);
  if (is(64, 1, 64, false)) return launch_scores<Shape<depth, 64, 1, 64, false>>(p, launch);
  if (is(128, 1, 64, false)) return launch_scores<Shape<depth, 128, 1, 64, false>>(p, launch);
  if (is(128, 2, 64, false)) return launch_scores<Shape<depth, 128, 2, 64, false>>(p, launch);
  if (is(128, 1, 64, true)) return launch_scores<Shape<depth, 128, 1, 64, true>>(p, launch);
  if (is(128, 1, 128, false)) return launch_scores<Shape<depth, 128, 1, 128, false>>(p, launch);
  if (is(128, 2, 128, false)) return launch_scores<Shape<depth, 128, 2, 128, false>>(p, launch);
  return launch_scores<Shape<depth, 128, 1, 128, true>>(p, launch);
}

// With the constants of a shape of `score_shape`.
template <typename Items>
void launch_any(const ScoreShape& shape, const ScoreArgs<Items>& p, const Launch& launch) {
  switch (p.depth) {
    case 32:
      return launch_shape<32>(shape, p, launch);
    case 64:
      return launch_shape<64>(shape, p, launch);
    default:
      return launch_shape<128>(shape, p, launch);
  }
}

}  // namespace mate::gpu::sm90a
