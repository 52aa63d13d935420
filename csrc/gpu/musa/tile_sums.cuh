// Sums of products of 16 x 16 tiles by a warp, by multiply-adds: what cuda/tile_sums.cuh tells of
// tensor cores.
#pragma once

#include <cstdint>
#include <type_traits>

#include "gpu/device_api.h"

namespace mate::gpu::portable {

constexpr bool kHasMatrixUnits = false;
constexpr int kSide = 16;  // of a tile
constexpr int kNumbers = kSide * kSide / kWarp;

// A lane has kRowsEach x kColsEach of the sums. Lanes side by side have neighbouring columns, so
// that few rows of B are read by many.
constexpr int kRowsEach = 2, kColsEach = kNumbers / kRowsEach;
__device__ inline int first_row() { return threadIdx.x % kWarp / (kSide / kColsEach) * kRowsEach; }
__device__ inline int col_of(int i) {
  return threadIdx.x % (kSide / kColsEach) + i * (kSide / kColsEach);
}

// Two elements that lie side by side.
__device__ inline float2 load_pair(const __half* from) {
  uint32_t word;
  memcpy(&word, __builtin_assume_aligned(from, sizeof(word)), sizeof(word));
  return make_float2(__half2float(half_of_bits(word & 0xffff)),
                     __half2float(half_of_bits(word >> 16)));
}

// Elements stay where they are until they are added up.
template <typename T>
struct RowsOfA {
  const T* from;
  int ld;

  __device__ void load(const T* rows, int rows_ld) { from = rows, ld = rows_ld; }
};
template <typename T>
struct RowsOfB : RowsOfA<T> {};

struct Sums {
  float x[kNumbers];

  __device__ void clear() {
#pragma unroll
    for (float& sum : x) sum = 0.0f;
  }
  template <typename T>
  __device__ void add(const RowsOfA<T>& a, const RowsOfB<T>& b) {
#pragma unroll 2
    for (int k = 0; k < kSide; k += 2) {
      float2 row[kRowsEach];
#pragma unroll
      for (int m = 0; m < kRowsEach; ++m) row[m] = load_pair(a.from + (first_row() + m) * a.ld + k);
#pragma unroll
      for (int n = 0; n < kColsEach; ++n) {
        const float2 col = load_pair(b.from + col_of(n) * b.ld + k);
#pragma unroll
        for (int m = 0; m < kRowsEach; ++m) {
          float& sum = x[m * kColsEach + n];
          sum = fmaf(row[m].y, col.y, fmaf(row[m].x, col.x, sum));
        }
      }
    }
  }
  __device__ void store(float* tile, int ld) const {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      tile[(first_row() + i / kColsEach) * ld + col_of(i % kColsEach)] = x[i];
    }
  }
};

struct Places {
  // Nothing is to be learnt, but as where there is, the threads of the block have met.
  __device__ void learn(float (&)[kSide * kSide]) { __syncthreads(); }

  class Mine {
   public:
    __device__ explicit Mine(const Places&) {}
    __device__ int row(int i) const { return first_row() + i / kColsEach; }
    __device__ int col(int i) const { return col_of(i % kColsEach); }
  };
};

}  // namespace mate::gpu::portable
