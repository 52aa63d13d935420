// What a selection reads: floats, batch by batch, as integers of the same order.
#pragma once

#include "gpu/convert.cuh"
#include "gpu/units.cuh"

namespace mate::gpu {

constexpr int kBatch = 16;  // consecutive keys that a thread holds

// NaN is above all else, zeros are equal. No float has the key 0, which stands for nothing.
__device__ inline uint32_t key_of(float x) {
  // Of zeros of both signs the sum is positive.
  uint32_t bits = __float_as_uint(x + 0.0f);
#ifndef __NVCC__
  // NVIDIA's sums have one NaN only, which is this.
  if (x != x) bits = 0x7fffffff;
#endif
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000);
}

// Floats, or keys, one after the other, which may start anywhere: positions count from the multiple
// of 16 bytes before. A row has fewer than 2^31 columns, since indices are int32.
struct Run {
  const uint32_t* aligned;
  uint32_t head, size;  // positions before the first value, and up to the last
  bool are_keys;

  __device__ Run(const void* values, uint32_t count, bool are_keys)
      : head(static_cast<uint32_t>(reinterpret_cast<uintptr_t>(values) / sizeof(uint32_t) % 4)),
        are_keys(are_keys) {
    aligned = static_cast<const uint32_t*>(values) - head;
    size = count + head;
  }
  __device__ uint32_t key(uint32_t word) const {
    return are_keys ? word : key_of(__uint_as_float(word));
  }
  // Keys from a position on, which is a multiple of kBatch; 0 where there is nothing.
  __device__ void load(uint32_t position, uint32_t (&keys)[kBatch]) const {
    const uint32_t* from = aligned + position;
    if (position >= head && position + kBatch <= size) {
      load_words(from, keys);
#pragma unroll
      for (uint32_t& key : keys) key = this->key(key);
    } else {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const uint32_t at = position + i;
        keys[i] = at >= head && at < size ? key(from[i]) : 0;
      }
    }
  }
};

// Position of this thread's batch, and number of positions of the block's.
__device__ inline uint32_t first_position() { return threadIdx.x * kBatch; }
__device__ inline uint32_t block_positions() { return blockDim.x * kBatch; }

// Keys that the threads of a block hold, n each.
template <int n>
struct Held {
  uint32_t keys[n];

  template <typename F>
  __device__ void each(const F& f) const {
#pragma unroll
    for (uint32_t key : keys) f(key);
  }
};

// Keys of a source that are read anew each time. Other blocks of a multiprocessor hide the wait.
template <typename Source>
struct Streamed {
  const Source& source;

  template <typename F>
  __device__ void each(const F& f) const {
    each_batch([&](uint32_t, const uint32_t (&keys)[kBatch]) {
#pragma unroll
      for (uint32_t key : keys) f(key);
      return true;
    });
  }
  // Calls f(position, keys) until it returns false. All of a block, as often for each thread.
  template <typename F>
  __device__ void each_batch(const F& f) const {
    for (uint32_t base = 0; base < source.size; base += block_positions()) {
      uint32_t keys[kBatch];
      source.load(base + first_position(), keys);
      if (!f(base + first_position(), keys)) return;
    }
  }
};

}  // namespace mate::gpu
