// Radix selection by one block: the k-th largest key by counting digits from the top, and those
// above it in the order of their positions.
#pragma once

#include "gpu/block_scan.cuh"
#include "gpu/topk_source.cuh"

namespace mate::gpu {

constexpr int kMostDigits = 2048, kDigitsPerThread = 4;
constexpr int kStaged = 2048;

// What to take: keys above `key`, and the first `equal` of those at it.
struct Cut {
  uint32_t key;
  uint32_t equal;
};

struct SelectRoom {
  alignas(16) uint32_t counts[kMostDigits];  // zeros between selections
  uint32_t staged[kStaged];
  uint32_t sums[2][kWarp];
  uint32_t digit, rank, count;  // of the digit that holds the cut

  // Before the first selection, by all of a block, which then waits.
  __device__ void clear() {
    for (int i = threadIdx.x; i < kMostDigits; i += blockDim.x) counts[i] = 0;
    __syncthreads();
  }
};

// Finds the digit that holds the rank-th largest key among the counted ones, and clears the counts.
__device__ inline void find_digit(SelectRoom& room, uint32_t rank) {
  const int low = (blockDim.x - 1 - threadIdx.x) * kDigitsPerThread;
  auto* mine = reinterpret_cast<uint4*>(room.counts + low);
  const uint4 counts = *mine;
  *mine = make_uint4(0, 0, 0, 0);
  const uint32_t sum = counts.x + counts.y + counts.z + counts.w;
  uint32_t before = scan_block(sum, room.sums[0], Sum()).before;
  if (before >= rank || before + sum < rank) return;
  const uint32_t descending[] = {counts.w, counts.z, counts.y, counts.x};
#pragma unroll
  for (int i = 0; i < kDigitsPerThread; ++i) {
    if (before < rank && before + descending[i] >= rank) {
      room.digit = low + kDigitsPerThread - 1 - i;
      room.rank = rank - before;
      room.count = descending[i];
    }
    before += descending[i];
  }
}

// The cut that takes the `rank` largest, of which there are at least so many. All of a block, of a
// power of two of threads, at most as many as find_digit has digits for.
template <typename Keys>
__device__ inline Cut find_cut(const Keys& keys, uint32_t rank, SelectRoom& room) {
  const int digit_bits = kWarp - 1 - __clz(blockDim.x * kDigitsPerThread);
  uint32_t low = 0;
  // Each pass counts digits among the keys whose higher bits are those of `low`.
  for (int bits = kWarp; bits > 0;) {
    const int shift = max(bits - digit_bits, 0);
    if (bits == kWarp) {
      keys.each([&](uint32_t key) { atomicAdd(&room.counts[key >> shift], 1u); });
    } else {
      const uint32_t width = 1u << bits;
      keys.each([&](uint32_t key) {
        const uint32_t above = key - low;
        if (above < width) atomicAdd(&room.counts[above >> shift], 1u);
      });
    }
    __syncthreads();
    find_digit(room, rank);
    __syncthreads();
    rank = room.rank;
    low += room.digit << shift;
    bits = shift;
    if (rank == room.count) return {low - 1, 0};  // all from `low` on
  }
  return {low, rank};
}

// What a thread takes of its batch, by bits, and how many are taken before.
struct Taken {
  unsigned bits;
  uint32_t number;

  // Calls f(number, place in the batch) for each.
  template <typename F>
  __device__ void each(const F& f) const {
    uint32_t next = number;
    for (unsigned left = bits; left != 0; left &= left - 1) f(next++, __ffs(left) - 1);
  }
};

// Tells what a cut takes of a block's batches, one after the other.
class Taker {
 public:
  __device__ Taker(const Cut& cut, SelectRoom& room) : cut_(cut), room_(room) {}
  // Of all batches so far.
  __device__ uint32_t count() const { return above_ + min(equal_, cut_.equal); }

  __device__ Taken take(const uint32_t (&keys)[kBatch]) {
    unsigned above = 0, equal = 0;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) above |= keys[i] > cut_.key ? 1u << i : 0;
    if (equal_ < cut_.equal) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) equal |= keys[i] == cut_.key ? 1u << i : 0;
    }
    const uint32_t counts = __popc(above) + (static_cast<uint32_t>(__popc(equal)) << 16);
    // The other sums may still be read.
    const Prefix<uint32_t> prefix = scan_block(counts, room_.sums[turn_], Sum());
    turn_ ^= 1;
    const uint32_t equal_before = min(equal_ + (prefix.before >> 16), cut_.equal);
    const uint32_t spare = cut_.equal - equal_before;
    for (uint32_t i = __popc(equal); i > spare; --i) equal ^= 0x80000000u >> __clz(equal);
    const uint32_t number = above_ + (prefix.before & 0xffff) + equal_before;
    above_ += prefix.all & 0xffff;
    equal_ += prefix.all >> 16;
    return {above | equal, number};
  }

 private:
  Cut cut_;
  SelectRoom& room_;
  uint32_t above_ = 0, equal_ = 0;
  int turn_ = 1;  // sums[0] was used to find the cut
};

// Writes index_of(position) of the first `count` staged positions.
template <typename IndexOf>
__device__ inline void write_staged(uint32_t count, int32_t* out, const SelectRoom& room,
                                    const IndexOf& index_of) {
  constexpr int kEach = 4;  // that a thread looks up before it writes them
  for (uint32_t first = threadIdx.x; first < count; first += kEach * blockDim.x) {
    int32_t indices[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const uint32_t at = first + i * blockDim.x;
      if (at < count) indices[i] = index_of(room.staged[at]);
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const uint32_t at = first + i * blockDim.x;
      if (at < count) out[at] = indices[i];
    }
  }
}

// Writes index_of(position) of the k largest of a source that a block can hold, of which there are
// at least so many, by way of shared memory, so that neighbours are written together. All of a
// block.
template <typename Source, typename IndexOf>
__device__ inline void select_held(const Source& source, uint32_t k, int32_t* out, SelectRoom& room,
                                   const IndexOf& index_of) {
  Held<kBatch> all;
  source.load(first_position(), all.keys);
  const Taken taken = Taker(find_cut(all, k, room), room).take(all.keys);
  for (uint32_t from = 0; from < k; from += kStaged) {
    taken.each([&](uint32_t number, uint32_t i) {
      if (number - from < kStaged) room.staged[number - from] = first_position() + i;
    });
    __syncthreads();
    write_staged(min(k - from, uint32_t{kStaged}), out + from, room, index_of);
    __syncthreads();
  }
}

// The same for any source.
template <typename Source, typename IndexOf>
__device__ inline void select(const Source& source, uint32_t k, int32_t* out, SelectRoom& room,
                              const IndexOf& index_of) {
  if (source.size <= block_positions()) return select_held(source, k, out, room, index_of);
  const Streamed<Source> all{source};
  Taker taker(find_cut(all, k, room), room);
  all.each_batch([&](uint32_t position, const uint32_t (&keys)[kBatch]) {
    taker.take(keys).each(
        [&](uint32_t number, uint32_t i) { out[number] = index_of(position + i); });
    return taker.count() < k;
  });
}

}  // namespace mate::gpu
