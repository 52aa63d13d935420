// The k largest values of rows. A random sample gives a value that slightly more than k reach
// (Floyd and Rivest's SELECT), one pass collects those, and a radix selection among them is exact.
// Where the sample misleads, the radix selection reads the whole row.
#include <cmath>

#include "gpu/scratch.h"
#include "gpu/topk.h"
#include "gpu/topk_select.cuh"

namespace mate::gpu {
namespace {

constexpr int kThreads = kMostThreads;
constexpr int kPerSm = 3;  // blocks that fit, at least
constexpr int kSample = 2048;
constexpr int64_t kSpare = 8192;                     // candidates at most, beside 4 k
constexpr int64_t kMostScratch = int64_t{1} << 28;   // bytes, for rows that share none
constexpr int64_t kSegment = 2 * kThreads * kBatch;  // of a row, at least

struct Row {
  const float* values;
  uint32_t count;
  int32_t* out;
};

__device__ inline Row row_of(const TopKRows& p, int64_t r) {
  auto cut = [&](int64_t x, int64_t least) {
    return x < least ? least : x > p.columns ? p.columns : x;
  };
  const int64_t start = p.starts == nullptr ? 0 : p.starts[r * p.start_stride];
  const int64_t first = cut(start, 0), end = cut(p.lengths[r * p.length_stride], first);
  return {p.values + r * p.row_stride + first, static_cast<uint32_t>(end - first),
          p.out + r * p.out_stride};
}

// An upper bound, nearly always, of a count of random events whose mean is x.
__host__ __device__ inline float bound_of_count(float x) { return x + 3 * sqrtf(x) + 3; }

// Rank in a sample of what the k-th largest of n values surely reaches, or 0 where the sample
// would let through half of the row.
__host__ __device__ inline uint32_t rank_in_sample(int64_t n, int64_t k) {
  const auto rank = static_cast<uint32_t>(
      bound_of_count(static_cast<float>(kSample) * static_cast<float>(k) / static_cast<float>(n)));
  return 2 * rank > kSample ? 0 : rank;
}

// Whether a block's registers hold the row, which then is searched itself.
__device__ inline bool is_short(const Row& row) { return row.count + 3 <= blockDim.x * kBatch; }

struct Room {
  SelectRoom select;
  alignas(16) float sample[kSample];
};

// The cut that lets the candidates of a row through: one value at random of each of kSample equal
// stretches, since even steps would follow any period.
__device__ Cut sample_cut(const Row& row, uint32_t k, uint32_t rank, Room& room) {
  const uint32_t stretch = row.count / kSample;
  for (uint32_t i = threadIdx.x; i < kSample; i += blockDim.x) {
    const uint32_t random = __umulhi((i + 1) * 2654435761u, stretch);
    room.sample[i] = row.values[i * stretch + random];
  }
  __syncthreads();
  Reader reader(Values(room.sample, kSample, 0, nullptr));
  // Of many at the cut no more than k can count.
  return {find_cut(reader, rank, room.select).key, k};
}

// Values found in a row, with the index of each. Arrays are aligned to 16 bytes.
struct Candidates {
  float* values;
  int32_t* indices;
};

// Candidates among the values from `first` on; returns how many there are, or more than `most`.
__device__ uint32_t collect(const Row& row, uint32_t first, uint32_t count, const Cut& cut,
                            const Candidates& found, uint32_t most, Room& room) {
  Reader reader(Values(row.values + first, count, first, nullptr));
  return take(reader, cut, most, room.select, found.indices, found.values);
}

__device__ void take_all(const Row& row, int64_t k) {
  for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
    row.out[i] = i < row.count ? static_cast<int32_t>(i) : -1;
  }
}

// Selects from the candidates, or from the row where they are too few or too many to be right.
__device__ void select(const Candidates& found, uint32_t count, uint32_t most, const Row& row,
                       uint32_t k, Room& room) {
  const bool right = count >= k && count <= most;
  __syncthreads();
  Reader reader(right ? Values(found.values, count, 0, found.indices)
                      : Values(row.values, row.count, 0, nullptr));
  const Cut cut = find_cut(reader, k, room.select);
  take(reader, cut, k, room.select, row.out, nullptr);
}

// Candidates of block b, or of part b: values, then indices.
struct Found {
  float* words;
  uint32_t most;  // candidates of each, a multiple of 4

  __device__ Candidates of(int64_t b) const {
    float* values = words + b * 2 * most;
    return {values, reinterpret_cast<int32_t*>(values + most)};
  }
  int64_t bytes_each() const { return int64_t{most} * 2 * sizeof(float); }
};

__global__ void __launch_bounds__(kThreads, kPerSm) top_k_kernel(TopKRows p, Found all) {
  __shared__ Room room;
  for (int64_t r = blockIdx.x; r < p.num_rows; r += gridDim.x) {
    const Row row = row_of(p, r);
    if (row.count <= p.k) {
      take_all(row, p.k);
      continue;
    }
    const uint32_t rank = is_short(row) || all.most == 0 ? 0 : rank_in_sample(row.count, p.k);
    uint32_t count = 0;
    if (rank > 0) {
      const Cut cut = sample_cut(row, p.k, rank, room);
      count = collect(row, 0, row.count, cut, all.of(blockIdx.x), all.most, room);
    }
    select(all.of(blockIdx.x), count, all.most, row, p.k, room);
  }
}

// Few long rows, each cut into segments.
struct Segments {
  Found segments;    // of each segment of each row
  Found rows;        // of each row
  uint32_t* counts;  // [num_rows, per_row]
  uint32_t per_row;
};

__global__ void __launch_bounds__(kThreads, kPerSm) collect_kernel(TopKRows p, Segments s) {
  __shared__ Room room;
  const int64_t units = p.num_rows * s.per_row;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t r = unit / s.per_row, segment = unit % s.per_row;
    const Row row = row_of(p, r);
    const uint32_t rank = row.count <= p.k || is_short(row) ? 0 : rank_in_sample(row.count, p.k);
    uint32_t count = 0;
    if (rank > 0) {
      const Cut cut = sample_cut(row, p.k, rank, room);
      const auto first = static_cast<uint32_t>(row.count * segment / s.per_row);
      const auto end = static_cast<uint32_t>(row.count * (segment + 1) / s.per_row);
      count = collect(row, first, end - first, cut, s.segments.of(unit), s.segments.most, room);
    }
    if (threadIdx.x == 0) s.counts[unit] = count;
  }
}

// Puts the candidates of a row's segments, at most one to a thread, one after the other.
__device__ uint32_t join(const Segments& s, int64_t r, const Candidates& found, Room& room) {
  auto* firsts = reinterpret_cast<uint32_t*>(room.sample);
  const uint32_t* counts = s.counts + r * s.per_row;
  const uint32_t mine = threadIdx.x, count = mine < s.per_row ? counts[mine] : 0;
  const bool too_many = __syncthreads_or(count > s.segments.most);
  if (too_many) return s.rows.most + 1;
  const Prefix<uint32_t> prefix = scan_block(count, room.select.sums[0], Sum());
  if (prefix.all > s.rows.most) return prefix.all;
  firsts[mine] = prefix.before;
  __syncthreads();
  for (uint32_t segment = threadIdx.x / kWarp; segment < s.per_row; segment += kThreads / kWarp) {
    const Candidates from = s.segments.of(r * s.per_row + segment);
    const uint32_t to = firsts[segment];
    for (uint32_t i = threadIdx.x % kWarp; i < counts[segment]; i += kWarp) {
      found.values[to + i] = from.values[i];
      found.indices[to + i] = from.indices[i];
    }
  }
  return prefix.all;
}

__global__ void __launch_bounds__(kThreads, kPerSm) finish_kernel(TopKRows p, Segments s) {
  __shared__ Room room;
  for (int64_t r = blockIdx.x; r < p.num_rows; r += gridDim.x) {
    const Row row = row_of(p, r);
    if (row.count <= p.k) {
      take_all(row, p.k);
      continue;
    }
    const Candidates found = s.rows.of(r);
    const uint32_t count = is_short(row) ? 0 : join(s, r, found, room);
    select(found, count, s.rows.most, row, p.k, room);
  }
}

uint32_t most_found(int64_t columns, int64_t k) {
  return static_cast<uint32_t>(blocks_of(std::min(columns, 4 * k + kSpare), 4) * 4);
}

void top_k_in_segments(const TopKRows& p, int per_row, const Launch& launch) {
  const int64_t units = p.num_rows * per_row;
  Segments s{};
  s.per_row = static_cast<uint32_t>(per_row);
  s.segments.most = most_found(blocks_of(p.columns, per_row), p.k);
  s.rows.most = most_found(p.columns, p.k);
  const int64_t of_segments = units * s.segments.bytes_each();
  const int64_t of_rows = p.num_rows * s.rows.bytes_each();
  const Scratch scratch(of_segments + of_rows + units * sizeof(uint32_t), launch);
  s.segments.words = scratch.at<float>();
  s.rows.words = scratch.at<float>(of_segments);
  s.counts = scratch.at<uint32_t>(of_segments + of_rows);
  collect_kernel<<<grid_of(units, kThreads, launch), kThreads, 0, launch.stream>>>(p, s);
  check_launch("top_k");
  finish_kernel<<<grid_of(p.num_rows, kThreads, launch), kThreads, 0, launch.stream>>>(p, s);
  check_launch("top_k");
}

}  // namespace

void top_k(const TopKRows& p, const Launch& launch) {
  if (p.num_rows == 0 || p.k == 0) return;
  const bool sampled =
      p.k < p.columns && p.columns + 3 > kThreads * kBatch && rank_in_sample(p.columns, p.k) > 0;
  const int64_t blocks = std::min<int64_t>(p.num_rows, int64_t{launch.num_sms} * kPerSm);
  const int64_t per_row =
      std::min<int64_t>(int64_t{launch.num_sms} * kPerSm / p.num_rows, p.columns / kSegment);
  if (sampled && per_row > 1) {
    return top_k_in_segments(p, static_cast<int>(std::min<int64_t>(per_row, kThreads)), launch);
  }
  // Shorter rows need fewer threads, and more of them are searched at a time.
  int threads = kThreads;
  while (threads > 64 && p.columns + 3 <= threads / 2 * kBatch) threads /= 2;
  Found found{nullptr, 0};
  unsigned grid = grid_of(std::min<int64_t>(p.num_rows, INT32_MAX), threads, launch);
  if (sampled) {
    found.most = most_found(p.columns, p.k);
    const int64_t most_blocks = std::max<int64_t>(kMostScratch / found.bytes_each(), 1);
    grid = static_cast<unsigned>(std::min(blocks, most_blocks));
  }
  const Scratch scratch(grid * (sampled ? found.bytes_each() : 0), launch);
  found.words = scratch.at<float>();
  top_k_kernel<<<grid, threads, 0, launch.stream>>>(p, found);
  check_launch("top_k");
}

}  // namespace mate::gpu
