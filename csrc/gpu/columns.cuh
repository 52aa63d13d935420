// Runs of columns between memory and registers.
#pragma once

#include "gpu/convert.cuh"

namespace mate::gpu {

// n consecutive columns as they are in memory, to be loaded long before they are needed: aligned
// vectors of 16 bytes, or single elements of any alignment.
template <DType type, int n>
struct Columns {
  uint32_t words[n / kPerWord<type>] = {};

  __device__ void load(const void* base, int64_t i) {
    load_words(static_cast<const char*>(base) + i * kSize<type>, words);
  }
  __device__ void floats(float (&v)[n]) const {
#pragma unroll
    for (int i = 0; i < n / kPerWord<type>; ++i) unpack<type>(words[i], v + i * kPerWord<type>);
  }
};

template <DType type>
struct Columns<type, 1> {
  float value = 0;

  __device__ void load(const void* base, int64_t i) { value = gpu::load<type>(base, i); }
  __device__ void floats(float (&v)[1]) const { v[0] = value; }
};

template <DType type, int n>
__device__ inline void store_columns(void* base, int64_t i, const float (&v)[n]) {
  if constexpr (n == 1) {
    store<type>(base, i, v[0]);
  } else {
    store_vector<type>(static_cast<char*>(base) + i * kSize<type>, v);
  }
}

// The values that v become when they are stored.
template <DType type, int n>
__device__ inline void round_columns(float (&v)[n]) {
  if constexpr (n == 1) {
    v[0] = rounded<type>(v[0]);
  } else {
#pragma unroll
    for (int i = 0; i < n; i += kPerWord<type>) unpack<type>(pack<type>(v + i), v + i);
  }
}

}  // namespace mate::gpu
