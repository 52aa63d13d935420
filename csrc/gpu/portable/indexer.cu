// Scores of the lightning indexer. A block takes a run of columns of one row at a time: the row's
// queries stay in shared memory as halves, which hold FP8 exactly, while tiles of keys pass by.
#include <algorithm>

#include "gpu/indexer.h"
#include "gpu/launch_kernel.h"
#include "gpu/portable/indexer_forms.cuh"
#include "gpu/portable/tile_sums.cuh"
#include "gpu/units.cuh"

namespace mate::gpu {
namespace portable {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kBlocksPerSm = 4;
constexpr int kTokens = kWarps * kSide;                     // of a tile, kSide to a warp
constexpr int kMostRun = 8 * kTokens;                       // columns of a run
constexpr int kDepth = 128;                                 // that is in shared memory at a time
constexpr int kHeadTiles = 4, kHeads = kHeadTiles * kSide;  // likewise
constexpr int kLd = kDepth + 8;
constexpr int kSumLd = kSide + 4;
constexpr int kUnit = 16;  // codes of an access

struct Shared {
  union {
    alignas(128) __half q[kHeads * kLd];
    float scratch[kSide * kSide];
  };
  alignas(128) __half keys[kTokens * kLd];
  alignas(128) float sums[kWarps][kSide * kSumLd];
  float weights[kHeads];
  Places places;
  int64_t runs;  // of a row
  SeenRow row;
  int64_t first;  // column of the run at hand
  int columns;    // of it
  Key run[kMostRun];
  unsigned busy[kWarps];  // bit: an item of a batch that there is something to do for
};

// 16 codes, or zeros.
__device__ void fetch(const uint8_t* from, uint32_t (&codes)[4]) {
  if (from == nullptr) {
#pragma unroll
    for (int w = 0; w < 4; ++w) codes[w] = 0;
  } else if (reinterpret_cast<uintptr_t>(from) % kUnit == 0) {
    load_words(from, codes);
  } else {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      codes[w] = 0;
#pragma unroll 1
      for (int i = 0; i < 4; ++i) codes[w] |= static_cast<uint32_t>(from[4 * w + i]) << 8 * i;
    }
  }
}

template <DType type>
__device__ void put(const uint32_t (&codes)[4], __half* to) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t words[4];
    convert_words<__half, type>(codes + 2 * i, words);
    store_words(to + 8 * i, words);
  }
}

__device__ void put(DType type, const uint32_t (&codes)[4], __half* to) {
  if (type == DType::kE5M2) return put<DType::kE5M2>(codes, to);
  put<DType::kE4M3>(codes, to);
}

template <typename Form>
class Worker {
 public:
  __device__ Worker(const Form& form, int run, Shared& shared)
      : form_(form), run_(run), s_(shared) {
    if (threadIdx.x == 0) s_.runs = ceil_div(form.p.columns, run);
    s_.places.learn(s_.scratch);
  }

  // Most items may lie behind what rows see: a block looks at as many at a time as it has threads.
  __device__ void work() {
    const int64_t items = form_.rows() * s_.runs, grid = gridDim.x;
    for (int64_t base = blockIdx.x; base < items; base += grid * kThreads) {
      const int64_t mine = base + grid * threadIdx.x;
      const unsigned busy = __ballot_sync(kAllLanes, mine < items && is_busy(mine));
      if (threadIdx.x % kWarp == 0) s_.busy[threadIdx.x / kWarp] = busy;
      __syncthreads();
      for (int w = 0; w < kWarps; ++w) {
        for (unsigned left = s_.busy[w]; left != 0; left &= left - 1) {
          score(base + grid * (w * kWarp + __ffs(static_cast<int>(left)) - 1));
        }
      }
      __syncthreads();
    }
  }

 private:
  __device__ int64_t run_first(int64_t item) const { return item % s_.runs * run_; }

  __device__ bool is_busy(int64_t item) const {
    if (form_.p.clean) return true;
    const SeenRow row = form_.row(item / s_.runs);
    const int64_t first = run_first(item);
    return max(row.first_column(), first) < min(row.end_column(), first + run_);
  }

  __device__ void score(int64_t item) {
    __syncthreads();  // the one before is done with shared memory
    if (threadIdx.x == 0) {
      s_.row = form_.row(item / s_.runs);
      s_.first = run_first(item);
      s_.columns = static_cast<int>(min(static_cast<int64_t>(run_), form_.p.columns - s_.first));
    }
    __syncthreads();
    if (!find_keys()) return;
    for (int tile = 0; tile < s_.columns; tile += kTokens) score_tile(tile);
  }

  // Columns that are not seen get what they get at once. False where none is.
  __device__ bool find_keys() {
    bool any = false;
    for (int i = threadIdx.x; i < run_; i += kThreads) {
      const int64_t column = s_.first + i;
      Key key{nullptr, 0};
      if (i < s_.columns) {
        const bool seen = column >= s_.row.first_column() && column < s_.row.end_column();
        if (seen) key = form_.key(s_.row, column + s_.row.shift);
        if (key.codes == nullptr && (seen || form_.p.clean)) {
          s_.row.out[column] = form_.p.clean_value;
        }
      }
      s_.run[i] = key;
      any |= key.codes != nullptr;
    }
    return __syncthreads_or(any);
  }

  // All heads of kTokens columns, from `tile` of the run on. Where heads or depth do not fit at a
  // time, their parts pass by one after the other.
  __device__ void score_tile(int tile) {
    const bool one_q = form_.p.heads <= kHeads && form_.p.depth <= kDepth;
    float weighted[kNumbers] = {};
    for (int64_t head = 0; head < form_.p.heads; head += kHeads) {
      Sums sums[kHeadTiles];
#pragma unroll
      for (int h = 0; h < kHeadTiles; ++h) sums[h].clear();
      for (int64_t d = 0; d < form_.p.depth; d += kDepth) {
        if (tile == 0 || !one_q) load_queries(head, d);
        if (d > 0 || head == 0 || form_.p.depth > kDepth) load_keys(tile, d);
        __syncthreads();
        multiply(head, d, sums);
        __syncthreads();
      }
      add_weighted(head, sums, weighted);
      if (!one_q) __syncthreads();  // the next queries come with other weights
    }
    store(tile, weighted);
  }

  __device__ int depth_left(int64_t d) const {
    return static_cast<int>(min(form_.p.depth - d, static_cast<int64_t>(kDepth)));
  }
  __device__ int heads_left(int64_t head) const {
    return static_cast<int>(min(form_.p.heads - head, static_cast<int64_t>(kHeads)));
  }

  __device__ void load_queries(int64_t head, int64_t d) {
    const int depth = depth_left(d), heads = heads_left(head);
    for (int u = threadIdx.x; u < kHeads * kDepth / kUnit; u += kThreads) {
      const int h = u / (kDepth / kUnit), at = u % (kDepth / kUnit) * kUnit;
      if (at >= depth) continue;
      uint32_t codes[4];
      fetch(h < heads ? s_.row.q + (head + h) * form_.p.q_head_stride + d + at : nullptr, codes);
      put(form_.p.q_type, codes, s_.q + h * kLd + at);
    }
    for (int h = threadIdx.x; h < heads; h += kThreads) {
      s_.weights[h] = s_.row.weights[(head + h) * form_.p.weight_head_stride];
    }
  }

  __device__ void load_keys(int tile, int64_t d) {
    constexpr int kUnits = kTokens * kDepth / kUnit / kThreads;
    const int depth = depth_left(d);
    uint32_t codes[kUnits][4];
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int u = threadIdx.x + i * kThreads, at = u % (kDepth / kUnit) * kUnit;
      const uint8_t* key = s_.run[tile + u / (kDepth / kUnit)].codes;
      fetch(key == nullptr || at >= depth ? nullptr : key + d + at, codes[i]);
    }
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int u = threadIdx.x + i * kThreads, at = u % (kDepth / kUnit) * kUnit;
      put(form_.key_type(), codes[i], s_.keys + u / (kDepth / kUnit) * kLd + at);
    }
  }

  __device__ void multiply(int64_t head, int64_t d, Sums (&sums)[kHeadTiles]) {
    const int depth = depth_left(d), heads = heads_left(head);
    const __half* keys = s_.keys + threadIdx.x / kWarp * kSide * kLd;
#pragma unroll 2
    for (int k = 0; k < depth; k += kSide) {
      RowsOfA<__half> tokens;
      tokens.load(keys + k, kLd);
#pragma unroll
      for (int h = 0; h < kHeadTiles; ++h) {
        if (h * kSide >= heads) break;
        RowsOfB<__half> queries;
        queries.load(s_.q + h * kSide * kLd + k, kLd);
        sums[h].add(tokens, queries);
      }
    }
  }

  // weighted += weight * relu(sum); heads past the last are left out, whatever their sums.
  __device__ void add_weighted(int64_t head, const Sums (&sums)[kHeadTiles],
                               float (&weighted)[kNumbers]) {
    const int heads = heads_left(head);
    const Places::Mine mine(s_.places);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      const int col = mine.col(i);
#pragma unroll
      for (int h = 0; h < kHeadTiles; ++h) {
        if (h * kSide + col >= heads) break;
        const float x = sums[h].x[i];  // NaN is to stay
        weighted[i] = fmaf(s_.weights[h * kSide + col], x < 0 ? 0.0f : x, weighted[i]);
      }
    }
  }

  __device__ void store(int tile, const float (&weighted)[kNumbers]) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    float* sums = s_.sums[warp];
    Sums all;
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) all.x[i] = weighted[i];
    all.store(sums, kSumLd);
    __syncwarp();
    // Two lanes to a token.
    const int token = lane / 2;
    const float* part = sums + token * kSumLd + lane % 2 * (kSide / 2);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kSide / 2; ++i) sum += part[i];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    const int at = tile + warp * kSide + token;
    const Key key = s_.run[at];
    if (lane % 2 == 0 && key.codes != nullptr) s_.row.out[s_.first + at] = sum * key.scale;
    __syncwarp();
  }

  const Form& form_;
  const int run_;
  Shared& s_;
};

template <typename Form>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) score_rows(const Form form, int run) {
  __shared__ Shared shared;
  Worker<Form>(form, run, shared).work();
}

template <typename Form>
void launch_scores(const Form& form, const Launch& launch) {
  const int64_t rows = form.rows(), columns = form.p.columns;
  if (rows == 0 || columns == 0) return;
  const bool all = launch.num_sms == num_sms(launch.device);
  const int64_t blocks = static_cast<int64_t>(launch.num_sms) * (all ? kBlocksPerSm : 1);
  // Shorter runs where there would be too few.
  int run = kMostRun;
  while (run > kTokens && rows * ceil_div(columns, run) < 2 * blocks) run /= 2;
  const int64_t grid = std::min(blocks, rows * ceil_div(columns, run));
  launch_kernel("indexer scores", score_rows<Form>, {grid, kThreads}, launch, form, run);
}

}  // namespace
}  // namespace portable

void portable_paged_scores(const PagedScores& p, const Launch& launch) {
  int log = 0;
  while (int64_t{1} << log < p.block_size) ++log;
  portable::launch_scores(portable::PagedForm{p, log}, launch);
}

void portable_flat_scores(const FlatScores& p, const Launch& launch) {
  portable::launch_scores(portable::FlatForm{p}, launch);
}

}  // namespace mate::gpu
