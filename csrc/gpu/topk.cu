// The k largest values of rows. A random sample gives a value that slightly more than k reach
// (Floyd and Rivest's SELECT), one pass collects those, and a radix selection among them is exact.
// Where the sample misleads, the radix selection reads the whole row.
#include <cmath>

#include "gpu/launch_kernel.h"
#include "gpu/scratch.h"
#include "gpu/topk.h"
#include "gpu/topk_select.cuh"

namespace mate::gpu {
namespace {

constexpr int kThreads = 512;
constexpr int kPerSm = 3;  // blocks that fit
constexpr int kSample = 2048;
constexpr int kTogether = 8;      // neighbours in a sample, which share a piece of memory
constexpr int64_t kSpare = 8192;  // candidates at most, beside 4 k
constexpr int64_t kMostScratch = int64_t{1} << 28;  // bytes, for rows that share none
constexpr int64_t kSegment = kThreads * kBatch;     // of a row, at least

// A row in elements of the logits and of the output, whose pointers are those of the launch.
struct Row {
  int64_t first, out;
  uint32_t count;

  __device__ Run run(const TopKRows& p) const { return {p.values + first, count, false}; }
};

__device__ inline Row row_of(const TopKRows& p, int64_t r) {
  auto cut = [&](int64_t x, int64_t least) {
    return x < least ? least : x > p.columns ? p.columns : x;
  };
  const int64_t start = p.starts == nullptr ? 0 : p.starts[r * p.start_stride];
  const int64_t first = cut(start, 0), end = cut(p.lengths[r * p.length_stride], first);
  return {r * p.row_stride + first, r * p.out_stride, static_cast<uint32_t>(end - first)};
}

// Calls f(r) for the rows of a block that have more than k values; the others are all taken. `row`
// is in shared memory, where it takes no registers.
template <typename F>
__device__ inline void each_row(const TopKRows& p, Row& row, const F& f) {
  for (int64_t r = blockIdx.x; r < p.num_rows; r += gridDim.x) {
    __syncthreads();
    if (threadIdx.x == 0) row = row_of(p, r);
    __syncthreads();
    if (row.count > p.k) {
      f(r);
      continue;
    }
    for (int64_t i = threadIdx.x; i < p.k; i += blockDim.x) {
      p.out[row.out + i] = i < row.count ? static_cast<int32_t>(i) : -1;
    }
  }
}

// Rank in a sample of what the k-th largest of n values surely reaches, or 0 where the sample
// would let through half of the row. Three standard deviations of a random sample of a quarter of
// the values are spared, since neighbours may be alike.
__host__ __device__ inline uint32_t rank_in_sample(int64_t n, int64_t k) {
  const float mean = static_cast<float>(kSample) * static_cast<float>(k) / static_cast<float>(n);
  const auto rank = static_cast<uint32_t>(mean + 6 * sqrtf(mean) + 3);
  return 2 * rank > kSample ? 0 : rank;
}

__device__ inline uint32_t high_product(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

// The cut that lets the candidates of a row through: of each of equal stretches, some neighbours at
// random, since even steps would follow any period.
__device__ Cut sample_cut(const TopKRows& p, const Row& row, uint32_t rank, SelectRoom& room) {
  constexpr int kEach = kSample / kThreads, kTeam = kTogether / kEach;
  constexpr uint32_t kGroups = kSample / kTogether;
  const Run run = row.run(p);
  const uint32_t stretch = row.count / kGroups, group = threadIdx.x / kTeam;
  const uint32_t random = high_product((group + 1) * 2654435761u, stretch - kTogether);
  // Down to a multiple of what is loaded together, but not below the first value.
  const uint32_t position = max((run.head + group * stretch + random) / kTogether * kTogether,
                                (run.head + kEach - 1) / kEach * kEach) +
                            threadIdx.x % kTeam * kEach;
  Held<kEach> sample;
  load_words(run.aligned + position, sample.keys);
#pragma unroll
  for (uint32_t& key : sample.keys) key = run.key(key);
  // Of many at the cut no more than k can count.
  const Cut cut = find_cut(sample, rank, room);
  return {cut.key, cut.equal == 0 ? 0 : static_cast<uint32_t>(p.k)};
}

// Values found in a row, as keys and then the index of each.
struct Candidates {
  uint32_t* words;  // [2, most], aligned to 16 bytes
  uint32_t most;    // a multiple of 4
};

// Candidates of each block, or of each part.
struct Found {
  uint32_t* words;
  uint32_t most;  // candidates of each

  __device__ Candidates of(int64_t b) const { return {words + b * 2 * most, most}; }
  int64_t bytes_each() const { return int64_t{most} * 2 * sizeof(uint32_t); }
};

// Candidates among the values from `first` on; returns how many there are, or more than fit.
__device__ uint32_t collect(const TopKRows& p, const Row& row, uint32_t first, uint32_t count,
                            const Cut& cut, const Candidates& found, SelectRoom& room) {
  const Run run(p.values + row.first + first, count, false);
  Taker taker(cut, room);
  Streamed<Run>{run}.each_batch([&](uint32_t position, const uint32_t (&keys)[kBatch]) {
    taker.take(keys).each([&](uint32_t number, uint32_t i) {
      if (number >= found.most) return;
      found.words[number] = run.key(run.aligned[position + i]);
      found.words[number + found.most] = first + position + i - run.head;
    });
    return taker.count() <= found.most;
  });
  __syncthreads();
  return taker.count();
}

__device__ void select_of_row(const TopKRows& p, const Row& row, SelectRoom& room) {
  const Run run = row.run(p);
  select(run, p.k, p.out + row.out, room,
         [&](uint32_t position) { return static_cast<int32_t>(position - run.head); });
}

// Rows of which a block holds each.
__global__ void __launch_bounds__(kThreads, kPerSm) short_rows_kernel(TopKRows p) {
  __shared__ SelectRoom room;
  __shared__ Row row;
  room.clear();
  each_row(p, row, [&](int64_t) {
    const Run run = row.run(p);
    select_held(run, p.k, p.out + row.out, room,
                [&](uint32_t position) { return static_cast<int32_t>(position - run.head); });
  });
}

// Where a sample can tell, the rank in it of the cut for candidates, else 0.
__device__ inline uint32_t rank_of_cut(const TopKRows& p, const Row& row) {
  if (row.count <= p.k || row.run(p).size <= block_positions()) return 0;
  return rank_in_sample(row.count, p.k);
}

__global__ void __launch_bounds__(kThreads, kPerSm) long_rows_kernel(TopKRows p, Found all) {
  __shared__ SelectRoom room;
  __shared__ Row row;
  room.clear();
  each_row(p, row, [&](int64_t) {
    const Candidates found = all.of(blockIdx.x);
    const uint32_t rank = found.most == 0 ? 0 : rank_of_cut(p, row);
    uint32_t count = 0;
    if (rank > 0) {
      count = collect(p, row, 0, row.count, sample_cut(p, row, rank, room), found, room);
    }
    // Too few or too many are not right.
    const bool right = count >= p.k && count <= found.most;
    const Run run = right ? Run(found.words, count, true) : row.run(p);
    select(run, p.k, p.out + row.out, room, [&](uint32_t position) {
      return static_cast<int32_t>(right ? found.words[position + found.most] : position - run.head);
    });
  });
}

// Few long rows, each cut into segments.
struct Segments {
  Found found;       // in each segment of each row
  uint32_t* counts;  // [num_rows, per_row]
  uint32_t per_row;
};

__global__ void __launch_bounds__(kThreads, kPerSm) collect_kernel(TopKRows p, Segments s) {
  __shared__ SelectRoom room;
  __shared__ Row row;
  room.clear();
  const int64_t units = p.num_rows * s.per_row;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t r = unit / s.per_row, segment = unit % s.per_row;
    __syncthreads();
    if (threadIdx.x == 0) row = row_of(p, r);
    __syncthreads();
    const uint32_t rank = rank_of_cut(p, row);
    uint32_t count = 0;
    if (rank > 0) {
      const auto first = static_cast<uint32_t>(row.count * segment / s.per_row);
      const auto end = static_cast<uint32_t>(row.count * (segment + 1) / s.per_row);
      const Cut cut = sample_cut(p, row, rank, room);
      count = collect(p, row, first, end - first, cut, s.found.of(unit), room);
    }
    if (threadIdx.x == 0) s.counts[unit] = count;
  }
}

// The candidates of a row's segments one after the other.
struct Joined {
  Found found;
  int64_t first;           // of the segments
  const uint32_t* firsts;  // [number of segments + 1] candidates before each
  uint32_t per_row, size;

  __device__ uint32_t segment_of(uint32_t i) const {
    uint32_t low = 0, high = per_row;
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      (firsts[middle] <= i ? low : high) = middle;
    }
    return low;
  }
  __device__ uint32_t word(uint32_t segment, uint32_t i, uint32_t offset) const {
    return found.of(first + segment).words[i - firsts[segment] + offset];
  }
  __device__ int32_t index(uint32_t i) const {
    return static_cast<int32_t>(word(segment_of(i), i, found.most));
  }
  __device__ void load(uint32_t position, uint32_t (&keys)[kBatch]) const {
    uint32_t segment = segment_of(position);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const uint32_t i = position + j;
      while (i < size && i >= firsts[segment + 1]) ++segment;
      keys[j] = i < size ? word(segment, i, 0) : 0;
    }
  }
};

__global__ void __launch_bounds__(kThreads, 1) finish_kernel(TopKRows p, Segments s) {
  __shared__ SelectRoom room;
  __shared__ Row row;
  __shared__ uint32_t firsts[kThreads + 1];
  room.clear();
  each_row(p, row, [&](int64_t r) {
    const uint32_t mine = threadIdx.x;
    const uint32_t count = mine < s.per_row ? s.counts[r * s.per_row + mine] : 0;
    // Where a segment has too many, so has the row.
    const bool misled = __syncthreads_or(count > s.found.most);
    const Prefix<uint32_t> prefix = scan_block(count, room.sums[1], Sum());
    firsts[mine] = prefix.before;
    if (mine == kThreads - 1) firsts[kThreads] = prefix.all;
    __syncthreads();
    if (misled || prefix.all < p.k) return select_of_row(p, row, room);
    const Joined all{s.found, r * s.per_row, firsts, s.per_row, prefix.all};
    select(all, p.k, p.out + row.out, room, [&](uint32_t i) { return all.index(i); });
  });
}

uint32_t most_found(int64_t columns, int64_t k) {
  return static_cast<uint32_t>(blocks_of(std::min(columns, 4 * k + kSpare), 4) * 4);
}

void top_k_in_segments(const TopKRows& p, int per_row, const Launch& launch) {
  const int64_t units = p.num_rows * per_row;
  Segments s{};
  s.per_row = static_cast<uint32_t>(per_row);
  s.found.most = most_found(blocks_of(p.columns, per_row), p.k);
  const int64_t of_segments = units * s.found.bytes_each();
  const Scratch scratch(of_segments + units * sizeof(uint32_t), launch);
  s.found.words = scratch.at<uint32_t>();
  s.counts = scratch.at<uint32_t>(of_segments);
  launch_kernel("top_k", collect_kernel, {grid_of(units, kThreads, launch), kThreads}, launch, p,
                s);
  launch_kernel("top_k", finish_kernel, {grid_of(p.num_rows, kThreads, launch), kThreads}, launch,
                p, s);
}

void top_k_of_short_rows(const TopKRows& p, int64_t positions, const Launch& launch) {
  // Shorter rows need fewer threads, and more of them are searched at a time.
  int threads = kThreads;
  while (threads > 64 && positions <= threads / 2 * kBatch) threads /= 2;
  const int64_t blocks = std::min<int64_t>(p.num_rows, INT32_MAX);
  launch_kernel("top_k", short_rows_kernel, {grid_of(blocks, threads, launch), threads}, launch, p);
}

}  // namespace

void top_k(const TopKRows& p, const Launch& launch) {
  if (p.num_rows == 0 || p.k == 0) return;
  const bool aligned =
      p.starts == nullptr && (address(p.values) | p.row_stride * sizeof(float)) % 16 == 0;
  const int64_t positions = p.columns + (aligned ? 0 : 3);
  if (positions <= kThreads * kBatch) return top_k_of_short_rows(p, positions, launch);
  const bool sampled = p.k < p.columns && rank_in_sample(p.columns, p.k) > 0;
  const int64_t blocks = int64_t{launch.num_sms} * kPerSm;
  const int64_t per_row = std::min<int64_t>(blocks / p.num_rows, p.columns / kSegment);
  if (sampled && per_row > 1) {
    return top_k_in_segments(p, static_cast<int>(std::min<int64_t>(per_row, kThreads)), launch);
  }
  Found found{nullptr, sampled ? most_found(p.columns, p.k) : 0};
  unsigned grid = grid_of(std::min<int64_t>(p.num_rows, INT32_MAX), kThreads, launch);
  if (sampled) {
    const int64_t most_blocks = std::max<int64_t>(kMostScratch / found.bytes_each(), 1);
    grid = static_cast<unsigned>(std::min({p.num_rows, blocks, most_blocks}));
  }
  const Scratch scratch(grid * (sampled ? found.bytes_each() : 0), launch);
  found.words = scratch.at<uint32_t>();
  launch_kernel("top_k", long_rows_kernel, {grid, kThreads}, launch, p, found);
}

}  // namespace mate::gpu
