// Products of a tile of A with a tile of B in shared memory, accumulated in float32: on tensor
// cores where the element type has them, by multiply-adds of floats elsewhere. Both tiles hold
// their rows one after the other, kLd elements apart, with kDepth of k.
#pragma once

#include "gpu/portable/tile_sums.cuh"
#include "gpu/units.cuh"

namespace mate::gpu::portable {

constexpr int kTileM = 64, kTileN = 128;
constexpr int kThreads = 256;

// acc: sums of one block of scales; total: the sums so far, with scales.
template <typename T>
class Products {
 public:
  static constexpr int kDepth = 32, kLd = kDepth + 8;

  // Of the block in shared memory.
  using Room = Places;

  // scratch: shared memory, free again at the next barrier.
  __device__ Products(float (&scratch)[kSide * kSide], Room& places) : places_(places) {
    places.learn(scratch);
  }

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        acc_[m][n].clear();
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) total_[m][n][i] = 0.0f;
      }
    }
  }

  // Rows of A from `rows` on are not looked at.
  __device__ void multiply(const T* a, const T* b, int rows) {
    if (row() >= rows) return;
#pragma unroll 1
    for (int k = 0; k < kDepth; k += kSide) {
      RowsOfB<T> columns[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        columns[n].load(b + (col() + n * kSide) * kLd + k, kLd);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (row() + m * kSide >= rows) continue;
        RowsOfA<T> rows_of_a;
        rows_of_a.load(a + (row() + m * kSide) * kLd + k, kLd);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          acc_[m][n].add(rows_of_a, columns[n]);
        }
      }
    }
  }

  // total += acc * (scale of its row * scale of its column); acc = 0.
  __device__ void flush(const float* row_scale, const float* col_scale) {
    const Places::Mine mine(places_);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      const float* row_scales = row_scale + row() + mine.row(i);
      const float* col_scales = col_scale + col() + mine.col(i);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float& sum = acc_[m][n].x[i];
          total_[m][n][i] =
              fmaf(sum, row_scales[m * kSide] * col_scales[n * kSide], total_[m][n][i]);
          sum = 0.0f;
        }
      }
    }
  }

  // The totals, as a tile of floats whose rows are ld apart.
  __device__ void store(float* tile, int ld) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) acc_[m][n].x[i] = total_[m][n][i];
        acc_[m][n].store(tile + (row() + m * kSide) * ld + col() + n * kSide, ld);
      }
    }
  }

 private:
  // A warp makes 32 x 32 sums.
  __device__ static int row() { return threadIdx.x / 128 * 32; }
  __device__ static int col() { return threadIdx.x / 32 % 4 * 32; }

  Sums acc_[2][2];
  float total_[2][2][kNumbers];
  const Places& places_;
};

template <>
class Products<float> {
 public:
  static constexpr int kDepth = 16, kLd = kDepth + 4;

  struct Room {};

  __device__ Products(float (&)[kSide * kSide], Room&) {}

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
#pragma unroll
      for (int n = 0; n < kCols; ++n) acc_[m][n] = total_[m][n] = 0.0f;
    }
  }

  __device__ void multiply(const float* a, const float* b, int rows) {
    if (row(0) >= rows) return;
#pragma unroll 1
    for (int k = 0; k < kDepth; k += 2) {
      float2 column[kCols];
#pragma unroll
      for (int n = 0; n < kCols; ++n) {
        column[n] = *reinterpret_cast<const float2*>(b + col(n) * kLd + k);
      }
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        const float2 x = *reinterpret_cast<const float2*>(a + row(m) * kLd + k);
#pragma unroll
        for (int n = 0; n < kCols; ++n) {
          acc_[m][n] = fmaf(x.x, column[n].x, acc_[m][n]);
          acc_[m][n] = fmaf(x.y, column[n].y, acc_[m][n]);
        }
      }
    }
  }

  __device__ void flush(const float* row_scale, const float* col_scale) {
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
#pragma unroll
      for (int n = 0; n < kCols; ++n) {
        total_[m][n] = fmaf(acc_[m][n], row_scale[row(m)] * col_scale[col(n)], total_[m][n]);
        acc_[m][n] = 0.0f;
      }
    }
  }

  __device__ void store(float* tile, int ld) {
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
#pragma unroll
      for (int n = 0; n < kCols; ++n) tile[row(m) * ld + col(n)] = total_[m][n];
    }
  }

 private:
  static constexpr int kRows = 4, kCols = 8;

  // Columns lie apart so that threads side by side read different banks.
  __device__ static int row(int m) { return threadIdx.x / 16 * kRows + m; }
  __device__ static int col(int n) { return threadIdx.x % 16 + n * 16; }

  float acc_[kRows][kCols], total_[kRows][kCols];
};

}  // namespace mate::gpu::portable
