// Grouped products out[r, n] = sum_k A[r, k] B[n, k] for every form of operands and scales. Blocks
// take tiles of the output one after the other; which group a tile belongs to they find in the
// plan.
#include <algorithm>

#include "gpu/gemm.h"
#include "gpu/launch_kernel.h"
#include "gpu/portable/epilogue.cuh"
#include "gpu/portable/plan.h"
#include "gpu/portable/products.cuh"
#include "gpu/portable/steps.cuh"
#include "gpu/portable/tile_loader.cuh"
#include "gpu/portable/tiles.cuh"

namespace mate::gpu {
namespace portable {
namespace {

constexpr int kBlocksPerSm = 2;
constexpr int kTileLd = kTileN + 4;
static_assert(kTileM == kPortableBlockM && kTileN % kPortableBlockN == 0, "see finish");
static_assert(kTileN == kWarp * kLaneCols, "a warp finishes a row of a tile");

// What a block holds in shared memory: registers are for sums. Those take the place of operands
// once these are used up.
template <typename T>
struct Shared {
  static constexpr int kLd = Products<T>::kLd;
  struct Operands {
    T a[kTileM * kLd], b[kTileN * kLd];
  };
  union {
    alignas(128) char operands[2][sizeof(Operands)];
    alignas(128) float sums[kTileM * kTileLd];
    alignas(128) float scratch[kSide * kSide];
  };
  int64_t next;  // number of the tile after the one at hand
  Tile tile;
  Cuts cuts;
  TileSource a_source, b_source;
  int64_t rows[kTileM];  // of A and of the output
  int64_t a_offsets[kTileM], b_offsets[kTileN];
  const float* scale_rows[kTileM + kTileN];  // of rows of A, then of rows of B; null: 1
  float scales[2][kTileM + kTileN];          // of a block of k
  typename Products<T>::Room room;

  // Of a step or the one after it.
  __device__ Operands& step(int odd) { return *reinterpret_cast<Operands*>(operands[odd]); }
};

// Scales of one row of an operand, from those of block `first_block` of k on, or null.
__device__ const float* scale_row(const Scales& s, int64_t group, int64_t row,
                                  int64_t first_block) {
  if (s.data == nullptr) return nullptr;
  const int64_t block = s.row_block == 1 ? row : row / s.row_block;
  return s.data + group * s.group_stride + block * s.row_stride + first_block * s.k_stride;
}

// The blocks of k at whose ends sums are scaled. Where both operands have scales they share the
// blocks, or one of them has a single block.
__device__ int64_t scaled_block(const Gemm& p) {
  const int64_t a = p.a_scale.data == nullptr ? INT64_MAX : p.a_scale.k_block;
  const int64_t b = p.b_scale.data == nullptr ? INT64_MAX : p.b_scale.k_block;
  return min(a, b);
}

template <typename T>
class Worker {
 public:
  __device__ Worker(const Gemm& p, const Plan& plan, Shared<T>& shared)
      : p_(p), plan_(plan), shared_(shared), products_(shared.scratch, shared.room) {}

  __device__ void run() {
    if (threadIdx.x == 0) shared_.next = blockIdx.x;
    while (next_tile()) {
      place(shared_.tile);
      __syncthreads();
      multiply();
      __syncthreads();
      products_.store(shared_.sums, kTileLd);
      __syncthreads();
      finish(shared_.tile);
    }
  }

 private:
  static constexpr int kDepth = Products<T>::kDepth;

  // False where there is none.
  __device__ bool next_tile() {
    __syncthreads();  // the one before has been finished
    const int64_t i = shared_.next, row_tiles = plan_.tile_first == nullptr
                                                    ? plan_.num_groups * plan_.whole_tiles
                                                    : plan_.tile_first[plan_.num_groups];
    if (i >= row_tiles * ceil_div(p_.n, kTileN)) return false;
    if (threadIdx.x < kWarp) {
      const Tile t = tile_at(p_, plan_, i);
      if (threadIdx.x == 0) {
        shared_.tile = t;
        const int64_t k_block = min(scaled_block(p_), max(t.rows.k, static_cast<int64_t>(1)));
        shared_.cuts = {t.rows.k, k_block, static_cast<int>(ceil_div(k_block, kDepth))};
        shared_.a_source = source(p_.a, t, plan_.sorted_rows != nullptr);
        shared_.b_source = source(p_.b, t, false);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) shared_.next = i + gridDim.x;
    return true;
  }

  __device__ static TileSource source(const Operand& x, const Tile& t, bool gathered) {
    const int64_t first = t.group * x.group_stride + t.rows.k_first * x.k_stride;
    return {static_cast<const char*>(x.data) + first * size_of(x.type), x.type, x.row_stride,
            x.k_stride, gathered};
  }

  // Where the rows of a tile and their scales are.
  __device__ void place(const Tile& t) {
    const int i = threadIdx.x, j = i - kTileM;
    if (i < kTileM) {
      int64_t row = -1;
      if (i < t.num_rows) {
        row = t.rows.first + t.row_first + i;
        if (plan_.sorted_rows != nullptr) row = plan_.sorted_rows[row];
      }
      shared_.rows[i] = row;
      shared_.a_offsets[i] = row < 0 ? -1 : row * p_.a.row_stride;
      shared_.scale_rows[i] =
          row < 0 ? nullptr : scale_row(p_.a_scale, t.group, row, t.rows.k_block_first);
    } else if (j < kTileN) {
      const bool exists = j < t.num_cols;
      const int64_t col = t.col_first + j;
      shared_.b_offsets[j] = exists ? col * p_.b.row_stride : -1;
      shared_.scale_rows[i] =
          exists ? scale_row(p_.b_scale, t.group, col, t.rows.k_block_first) : nullptr;
    }
  }

  // This thread's among the scales of a block of k.
  __device__ float scale_of(int64_t k_block) const {
    if (threadIdx.x >= kTileM + kTileN) return 1.0f;
    const float* scales = shared_.scale_rows[threadIdx.x];
    const int64_t stride = threadIdx.x < kTileM ? p_.a_scale.k_stride : p_.b_scale.k_stride;
    return scales == nullptr ? 1.0f : scales[k_block * stride];
  }

  __device__ void multiply() {
    TileLoader<T, kTileM> a(shared_.a_source, shared_.a_offsets);
    TileLoader<T, kTileN> b(shared_.b_source, shared_.b_offsets);
    float scale = 1;
    auto fetch = [&](const Step<kDepth>& s) {
      a.fetch(s.first(), s.count());
      b.fetch(s.first(), s.count());
      if (s.starts_block()) scale = scale_of(s.block());
    };
    products_.clear();
    Step<kDepth> step(shared_.cuts);
    if (step.exists()) fetch(step);
    while (step.exists()) {
      // One barrier a step: what a step stores to was last read in the step before the last.
      auto& operands = shared_.step(step.is_odd());
      a.put(operands.a, step.first(), step.count());
      b.put(operands.b, step.first(), step.count());
      if (step.starts_block() && threadIdx.x < kTileM + kTileN) {
        shared_.scales[step.block() % 2][threadIdx.x] = scale;
      }
      __syncthreads();
      step.advance();
      if (step.exists()) fetch(step);
      products_.multiply(operands.a, operands.b, shared_.tile.num_rows);
      if (step.starts_block() || !step.exists()) {  // the one at hand ended one
        const float* scales = shared_.scales[(step.block() + step.starts_block()) % 2];
        products_.flush(scales, scales + kTileM);
      }
    }
  }

  __device__ void finish(const Tile& t) {
    const int lane_col = threadIdx.x % kWarp * kLaneCols;
    const int count = min(max(t.num_cols - lane_col, 0), kLaneCols);
    for (int r = threadIdx.x / kWarp; r < t.num_rows; r += kThreads / kWarp) {
      const float4 x = *reinterpret_cast<const float4*>(shared_.sums + r * kTileLd + lane_col);
      float v[kLaneCols] = {x.x, x.y, x.z, x.w};
      finish_columns(p_.out, t.group, shared_.rows[r], t.col_first + lane_col, count, v);
    }
    if (p_.signal.data == nullptr) return;
    __syncthreads();
    if (threadIdx.x == 0) {
      // The stores of the whole block come before the count, for whoever waits for that.
      __threadfence();
      atomicAdd(p_.signal.data + t.group * p_.signal.per_group + t.row_first / kTileM,
                static_cast<int>(ceil_div(t.num_cols, kPortableBlockN)));
    }
  }

  const Gemm& p_;
  const Plan& plan_;
  Shared<T>& shared_;
  Products<T> products_;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    multiply_grouped(const Gemm p, const Plan plan) {
  __shared__ Shared<T> shared;
  Worker<T>(p, plan, shared).run();
}

template <typename T>
void launch_with(const Gemm& p, const Plan& plan, const Launch& launch) {
  // Fewer multiprocessors than there are: a block on each, which the scheduler spreads out.
  const bool all = launch.num_sms == num_sms(launch.device);
  const int64_t blocks = static_cast<int64_t>(launch.num_sms) * (all ? kBlocksPerSm : 1);
  const int64_t grid = std::min(blocks, plan.most_tiles * ceil_div(p.n, kTileN));
  launch_kernel("portable_gemm", multiply_grouped<T>, {grid, kThreads}, launch, p, plan);
}

// False where products are not made in T.
template <typename T>
bool serve(const Gemm& p, const Plan& plan, const Launch& launch) {
  if constexpr (kHasMatrixUnits || std::is_same_v<T, float>) {
    if (!holds<T>(p.a.type) || !holds<T>(p.b.type)) return false;
    launch_with<T>(p, plan, launch);
    return true;
  }
  return false;
}

}  // namespace
}  // namespace portable

void portable_gemm(const Gemm& p, const Launch& launch) {
  if (p.rows.num_groups == 0 || p.rows.rows == 0 || p.n == 0) return;
  const portable::PlanMemory memory(p, portable::kTileM, launch);
  const portable::Plan& plan = memory.plan();
  if (portable::serve<__half>(p, plan, launch) || portable::serve<Bf16>(p, plan, launch)) return;
  portable::serve<float>(p, plan, launch);
}

}  // namespace mate::gpu
