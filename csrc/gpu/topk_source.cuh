// What a selection reads: floats, batch by batch, and as integers of the same order.
#pragma once

#include "gpu/units.cuh"

namespace mate::gpu {

constexpr int kBatch = 16;  // consecutive keys that a thread holds

// NaN is above all else, zeros are equal. No float has the key 0.
__device__ inline uint32_t order_key(float x) {
  uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0xffffffff;
  if (bits == 0x80000000) bits = 0;
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000);
}

// Bits of the positions from `position` on that are in [first, end).
__device__ inline unsigned bits_within(uint32_t position, uint32_t first, uint32_t end) {
  constexpr unsigned kAll = (1u << kBatch) - 1;
  if (position >= end) return 0;
  unsigned bits = position < first ? kAll << min(first - position, 31u) : kAll;
  if (end - position < kBatch) bits &= (1u << (end - position)) - 1;
  return bits & kAll;
}

// Which of a batch are above a cut and which at it, by bits.
struct Marks {
  unsigned above, equal;
};

// Values one after the other, which may start anywhere: positions count from the multiple of 16
// bytes before. A row has fewer than 2^31 columns, since indices are int32.
struct Values {
  const float* aligned;
  uint32_t head, size;     // positions before the first value, and up to the last
  uint32_t first;          // index of the first value
  const int32_t* indices;  // of each value, or null: they count up

  __device__ Values(const float* values, uint32_t count, uint32_t first_index,
                    const int32_t* indices)
      : head(static_cast<uint32_t>(reinterpret_cast<uintptr_t>(values) / sizeof(float) % 4)),
        first(first_index),
        indices(indices) {
    aligned = values - head;
    size = count + head;
  }
  __device__ int32_t index(uint32_t position) const {
    const uint32_t i = position - head;
    return indices != nullptr ? indices[i] : static_cast<int32_t>(i + first);
  }
  __device__ float value(uint32_t position) const { return aligned[position]; }
  __device__ unsigned present(uint32_t position) const { return bits_within(position, head, size); }
  // In terms of floats, which spares most of the keys. Of a cut at no number's key those beside it
  // may count as equal, which no one takes.
  __device__ Marks marks(const float (&values)[kBatch], uint32_t cut) const {
    constexpr uint32_t kInfinity = 0xff800000, kBelowZero = 0x7fffffff;
    const bool at_nan = cut == 0xffffffff;
    if (cut > kInfinity) cut = kInfinity;
    if (cut == kBelowZero) --cut;
    // Below the key of -inf this is NaN, which nothing is less than or equal to.
    const float value = __uint_as_float(cut >> 31 ? cut ^ 0x80000000 : ~cut);
    Marks marks{0, 0};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (!(values[i] <= value)) marks.above |= 1u << i;
      if (values[i] == value) marks.equal |= 1u << i;
    }
    if (at_nan) marks = {0, marks.above};
    return marks;
  }
  // Loads from a position that is a multiple of kBatch.
  __device__ void load(uint32_t position, float (&values)[kBatch]) const {
    const float* from = aligned + position;
    if (position >= head && position + kBatch <= size) {
#pragma unroll
      for (int i = 0; i < kBatch; i += 4) {
        const float4 v = *reinterpret_cast<const float4*>(from + i);
        values[i] = v.x, values[i + 1] = v.y, values[i + 2] = v.z, values[i + 3] = v.w;
      }
    } else {
      const unsigned there = present(position);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) values[i] = there >> i & 1 ? from[i] : 0.0f;
    }
  }
};

// Batches of a block, one after the other; the last one loaded is kept.
class Reader {
 public:
  __device__ explicit Reader(const Values& values) : values_(values) {}
  __device__ const Values& values() const { return values_; }
  __device__ uint32_t size() const { return values_.size; }
  __device__ uint32_t step() const { return blockDim.x * kBatch; }
  // Position of this thread's batch among those of the block from `base`.
  __device__ uint32_t mine(uint32_t base) const { return base + threadIdx.x * kBatch; }

  __device__ void load(uint32_t base) {
    if (base != base_) values_.load(mine(base), loaded_);
    base_ = base;
  }
  // Calls f(key) for each, with 0 where there is nothing: no float has that key.
  template <typename F>
  __device__ void each_key(uint32_t base, const F& f) {
    load(base);
    const unsigned there = values_.present(mine(base));
#pragma unroll
    for (int i = 0; i < kBatch; ++i) f(there >> i & 1 ? order_key(loaded_[i]) : 0);
  }
  __device__ Marks marks(uint32_t base, uint32_t cut) {
    load(base);
    const Marks marks = values_.marks(loaded_, cut);
    const unsigned there = values_.present(mine(base));
    return {marks.above & there, marks.equal & there};
  }

 private:
  Values values_;
  uint32_t base_ = 0xffffffff;
  float loaded_[kBatch];
};

}  // namespace mate::gpu
