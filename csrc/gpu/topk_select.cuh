// Radix selection by one block: the k-th largest key by counting digits from the top, and those
// above it in the order of their positions.
#pragma once

#include "gpu/block_scan.cuh"
#include "gpu/topk_source.cuh"

namespace mate::gpu {

constexpr int kMostThreads = 256;
constexpr int kDigitsPerThread = 8, kMostDigits = kMostThreads * kDigitsPerThread;

// What to take: keys above `key`, and the first `equal` of those at it.
struct Cut {
  uint32_t key;
  uint32_t equal;
};

struct SelectRoom {
  alignas(16) uint32_t counts[kMostDigits];
  uint32_t sums[2][kWarp];
  uint32_t least, most;         // key minus 1, key
  uint32_t digit, rank, count;  // of the digit that holds the cut
};

// Adds one to the count of a digit for each lane that has one. Lanes that agree with the first one
// add together, since many keys may be equal.
__device__ inline void count_digit(uint32_t (&counts)[kMostDigits], bool has, uint32_t digit) {
  const unsigned lanes = __ballot_sync(kAllLanes, has);
  if (lanes == 0) return;
  const int first = __ffs(lanes) - 1;
  const uint32_t common = __shfl_sync(kAllLanes, digit, first);
  const bool agrees = has && digit == common;
  const unsigned agreeing = __ballot_sync(kAllLanes, agrees);
  if (static_cast<int>(threadIdx.x % kWarp) == first) {
    atomicAdd(&counts[common], static_cast<uint32_t>(__popc(agreeing)));
  } else if (has && !agrees) {
    atomicAdd(&counts[digit], 1u);
  }
}

// Finds the digit that holds the rank-th largest key among the counted ones.
__device__ inline void find_digit(SelectRoom& room, uint32_t rank) {
  const int low = (blockDim.x - 1 - threadIdx.x) * kDigitsPerThread;
  uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kDigitsPerThread; i += 4) {
    const uint4 counts = *reinterpret_cast<const uint4*>(room.counts + low + i);
    sum += counts.x + counts.y + counts.z + counts.w;
  }
  uint32_t before = scan_block(sum, room.sums[0], Sum()).before;
  if (before >= rank || before + sum < rank) return;
  int digit = low + kDigitsPerThread - 1;
  while (before + room.counts[digit] < rank) before += room.counts[digit--];
  room.digit = digit;
  room.rank = rank - before;
  room.count = room.counts[digit];
}

// The least and the largest key.
__device__ inline void find_range(Reader& reader, SelectRoom& room, uint32_t& low, uint32_t& high) {
  __syncthreads();
  if (threadIdx.x == 0) room.least = 0xffffffff, room.most = 0;
  __syncthreads();
  low = 0xffffffff, high = 0;
  for (uint32_t base = 0; base < reader.size(); base += reader.step()) {
    reader.each_key(base, [&](uint32_t key) {
      low = min(low, key - 1);  // there being none counts as high
      high = max(high, key);
    });
  }
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    low = min(low, __shfl_xor_sync(kAllLanes, low, step));
    high = max(high, __shfl_xor_sync(kAllLanes, high, step));
  }
  if (threadIdx.x % kWarp == 0) {
    atomicMin(&room.least, low);
    atomicMax(&room.most, high);
  }
  __syncthreads();
  low = room.least + 1;
  high = room.most;
}

// The cut that takes the `rank` largest, of which there are at least so many. All of a block, of a
// power of two of threads up to kMostThreads.
__device__ inline Cut find_cut(Reader& reader, uint32_t rank, SelectRoom& room) {
  const int digit_bits = kWarp - 1 - __clz(blockDim.x * kDigitsPerThread);
  uint32_t low, high;
  find_range(reader, room, low, high);
  // Each pass counts digits within the range that the one before left.
  while (low < high) {
    const uint32_t span = high - low;
    const int bits = kWarp - __clz(span), shift = bits > digit_bits ? bits - digit_bits : 0;
    for (int i = 0; i < kDigitsPerThread / 4; ++i) {
      reinterpret_cast<uint4*>(room.counts)[threadIdx.x + i * blockDim.x] = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
    for (uint32_t base = 0; base < reader.size(); base += reader.step()) {
      reader.each_key(base, [&](uint32_t key) {
        const uint32_t above = key - low;
        count_digit(room.counts, above <= span, above >> shift);
      });
    }
    __syncthreads();
    find_digit(room, rank);
    __syncthreads();
    rank = room.rank;
    const uint32_t offset = room.digit << shift, width = (1u << shift) - 1;
    low += offset;
    high = low + min(span - offset, width);
    if (rank == room.count) return {low - 1, 0};  // all from `low` on
  }
  return {low, rank};
}

// Writes the indices of what the cut takes, in the order of positions, and the values too unless
// `values` is null, up to `most`; returns how many there are, or more than `most`. All of a block.
__device__ inline uint32_t take(Reader& reader, const Cut& cut, uint32_t most, SelectRoom& room,
                                int32_t* indices, float* values) {
  uint32_t above_before = 0, equal_before = 0, taken = 0;
  int turn = 0;
  __syncthreads();
  for (uint32_t base = 0; base < reader.size() && taken <= most; base += reader.step()) {
    const uint32_t mine = reader.mine(base);
    Marks marks = reader.marks(base, cut.key);
    if (equal_before >= cut.equal) marks.equal = 0;  // enough of them were found
    // The next batch is on its way while this one is counted.
    if (base + reader.step() < reader.size()) reader.load(base + reader.step());
    const uint32_t counts =
        __popc(marks.above) + (static_cast<uint32_t>(__popc(marks.equal)) << 16);
    const Prefix<uint32_t> prefix = scan_block(counts, room.sums[turn], Sum());
    turn ^= 1;
    uint32_t equal = equal_before + (prefix.before >> 16);
    uint32_t n = above_before + (prefix.before & 0xffff) + min(equal, cut.equal);
    for (unsigned left = marks.above | marks.equal; left != 0; left &= left - 1) {
      const int i = __ffs(left) - 1;
      if ((marks.equal >> i & 1) != 0 && equal++ >= cut.equal) continue;
      if (n < most) {
        indices[n] = reader.values().index(mine + i);
        if (values != nullptr) values[n] = reader.values().value(mine + i);
      }
      ++n;
    }
    above_before += prefix.all & 0xffff;
    equal_before += prefix.all >> 16;
    taken = above_before + min(equal_before, cut.equal);
  }
  return taken;
}

}  // namespace mate::gpu
