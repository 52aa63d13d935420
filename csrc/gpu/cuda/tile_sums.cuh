// Sums of products of 16 x 16 tiles by a warp, on tensor cores.
#pragma once

#include <mma.h>

#include <cstdint>

#include "gpu/device_api.h"

namespace mate::gpu::portable {

namespace wmma = nvcuda::wmma;

constexpr bool kHasMatrixUnits = true;
constexpr int kSide = 16;  // of a tile

// Rows of A, or of B, and kSide of k from `from` on; rows are ld apart.
template <typename T>
struct RowsOfA : wmma::fragment<wmma::matrix_a, kSide, kSide, kSide, T, wmma::row_major> {
  __device__ void load(const T* from, int ld) { wmma::load_matrix_sync(*this, from, ld); }
};
template <typename T>
struct RowsOfB : wmma::fragment<wmma::matrix_b, kSide, kSide, kSide, T, wmma::col_major> {
  __device__ void load(const T* from, int ld) { wmma::load_matrix_sync(*this, from, ld); }
};

// Each lane has kNumbers of the sums, in x.
struct Sums : wmma::fragment<wmma::accumulator, kSide, kSide, kSide, float> {
  __device__ void clear() { wmma::fill_fragment(*this, 0.0f); }
  template <typename T>
  __device__ void add(const RowsOfA<T>& a, const RowsOfB<T>& b) {
    wmma::mma_sync(*this, a, b, *this);
  }
  __device__ void store(float* tile, int ld) const {
    wmma::store_matrix_sync(tile, *this, ld, wmma::mem_row_major);
  }
};
constexpr int kNumbers = Sums::num_elements;

// Which elements of a tile the numbers of a lane are. That is not specified for tensor cores: it is
// read off a tile that holds the number of each of its elements.
// In shared memory, the same for all warps; kept out of registers, as what is worked out from it
// would be too.
struct Places {
  static_assert(kNumbers == 8, "two words of bytes");
  uint32_t words[kWarp][2];

  // For a whole block of threads, which meet in it; scratch is shared memory and free again at the
  // next barrier.
  __device__ void learn(float (&scratch)[kSide * kSide]) {
    for (int i = threadIdx.x; i < kSide * kSide; i += blockDim.x) {
      scratch[i] = static_cast<float>(i);
    }
    __syncthreads();
    if (threadIdx.x >= kWarp) return;
    Sums numbers;
    wmma::load_matrix_sync(numbers, scratch, kSide, wmma::mem_row_major);
    uint32_t packed[2] = {};
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      packed[i / 4] |= static_cast<uint32_t>(numbers.x[i]) << i % 4 * 8;
    }
    for (int i = 0; i < 2; ++i) words[threadIdx.x][i] = packed[i];
  }

  // Those of the calling lane.
  class Mine {
   public:
    __device__ explicit Mine(const Places& places) {
      for (int i = 0; i < 2; ++i) words_[i] = places.words[threadIdx.x % kWarp][i];
    }
    __device__ int row(int i) const { return place(i) / kSide; }
    __device__ int col(int i) const { return place(i) % kSide; }

   private:
    __device__ int place(int i) const {
      return static_cast<int>(words_[i / 4] >> i % 4 * 8 & 0xff);
    }
    uint32_t words_[2];
  };
};

}  // namespace mate::gpu::portable
