// A tile of an operand on its way to shared memory: fetched into registers while products of the
// tile before it are made, then converted and stored.
#pragma once

#include "gpu/portable/elements.cuh"
#include "gpu/portable/products.cuh"

namespace mate::gpu::portable {

// The operand of a tile, in shared memory.
struct TileSource {
  const char* data;  // of the group, where k is 0
  DType type;
  int64_t row_stride, k_stride;
  bool gathered;  // rows are not row_stride apart
};

// kRows x kDepth elements of T in units along k, or along the rows where those are side by
// side in memory.
template <typename T, int kRows>
class TileLoader {
 public:
  // Both are shared memory. Rows that are no part of the tile have an offset of -1: they are not
  // read and count as zeros.
  __device__ TileLoader(const TileSource& source, const int64_t (&row_offsets)[kRows])
      : source_(source), row_offsets_(row_offsets) {}

  // Elements of k in [k, k + count); the tile holds zeros behind them.
  __device__ void fetch(int64_t k, int count) {
    whole_ = 0;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int unit = threadIdx.x + i * kThreads;
      if (unit >= kUnits) break;
      const int64_t offset =
          along_k() ? offset_along_k(unit, k, count) : offset_along_rows(unit, k, count);
      const char* from = source_.data + offset * size_of(source_.type);
      if (offset == kInPart || (offset >= 0 && !is_aligned(from))) continue;
      whole_ |= 1u << i;
      if (offset == kAbsent) {
#pragma unroll
        for (int w = 0; w < kUnitWords; ++w) raw_[i][w] = 0;  // zeros of every type
      } else {
        fetch_unit(from, raw_[i]);
      }
    }
  }

  // Stores what was fetched to a tile whose rows are Products<T>::kLd apart.
  __device__ void put(T* tile, int64_t k, int count) const {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int unit = threadIdx.x + i * kThreads;
      if (unit >= kUnits) break;
      if ((whole_ >> i & 1) == 0) {
        put_elements(tile, unit, k, count);
        continue;
      }
      with_held_type<T>(source_.type,
                        [&](auto type) { put_whole<decltype(type)::value>(tile, unit, raw_[i]); });
    }
  }

 private:
  static constexpr int kDepth = Products<T>::kDepth, kLd = Products<T>::kLd;
  static constexpr int kUnitWords = 8, kUnit = kUnitWords * 4 / sizeof(T);
  static constexpr int kUnits = kRows * kDepth / kUnit;
  static constexpr int kMine = (kUnits + kThreads - 1) / kThreads;

  __device__ bool along_k() const { return source_.k_stride == 1 || source_.row_stride != 1; }

  // Whether a unit can be fetched in accesses of 16 bytes, or of fewer where it has no more.
  __device__ bool is_aligned(const char* from) const {
    return reinterpret_cast<uintptr_t>(from) % min(16, unit_bytes()) == 0;
  }
  __device__ int unit_bytes() const { return kUnit * static_cast<int>(size_of(source_.type)); }

  __device__ void fetch_unit(const char* from, uint32_t (&raw)[kUnitWords]) const {
    if (kUnit < 16 && unit_bytes() < 16) {
      const uint2 words = *reinterpret_cast<const uint2*>(from);
      raw[0] = words.x, raw[1] = words.y;
      return;
    }
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      if (v * 16 >= unit_bytes()) break;
      const uint4 words = reinterpret_cast<const uint4*>(from)[v];
      raw[4 * v] = words.x, raw[4 * v + 1] = words.y;
      raw[4 * v + 2] = words.z, raw[4 * v + 3] = words.w;
    }
  }

  // Place of a unit along k, and along the rows.
  __device__ static int row(int unit) { return unit / (kDepth / kUnit); }
  __device__ static int part(int unit) { return unit % (kDepth / kUnit); }
  __device__ static int depth(int unit) { return unit / (kRows / kUnit); }
  __device__ static int part_of_rows(int unit) { return unit % (kRows / kUnit); }

  // Offset of the first element of a unit that is side by side in memory. Rows that are absent come
  // last.
  static constexpr int64_t kAbsent = -1, kInPart = -2;

  __device__ int64_t offset_along_k(int unit, int64_t k, int count) const {
    const int64_t offset = row_offsets_[row(unit)];
    const int first = part(unit) * kUnit;
    if (offset < 0 || first >= count) return kAbsent;
    if (first + kUnit > count || source_.k_stride != 1) return kInPart;
    return offset + k + first;
  }
  __device__ int64_t offset_along_rows(int unit, int64_t k, int count) const {
    const int64_t* offsets = row_offsets_ + part_of_rows(unit) * kUnit;
    if (offsets[0] < 0 || depth(unit) >= count) return kAbsent;
    if (offsets[kUnit - 1] < 0 || source_.gathered) return kInPart;
    return offsets[0] + (k + depth(unit)) * source_.k_stride;
  }

  template <DType type>
  __device__ void put_whole(T* tile, int unit, const uint32_t (&raw)[kUnitWords]) const {
    constexpr int kAtOnce = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < kUnit; i += kAtOnce) {
      uint32_t words[4];
      convert_words<T, type>(raw + i / kPerWord<type>, words);
      if (along_k()) {
        store_words(tile + row(unit) * kLd + part(unit) * kUnit + i, words);
      } else {
        put_column(tile + (part_of_rows(unit) * kUnit + i) * kLd + depth(unit), words);
      }
    }
  }

  // Elements lie in different rows.
  __device__ static void put_column(T* at, const uint32_t (&words)[4]) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (sizeof(T) == 4) {
        at[w * kLd] = __uint_as_float(words[w]);
      } else {
        auto* bits = reinterpret_cast<uint16_t*>(at);
        bits[2 * w * kLd] = static_cast<uint16_t>(words[w] & 0xffff);
        bits[(2 * w + 1) * kLd] = static_cast<uint16_t>(words[w] >> 16);
      }
    }
  }

  // One element after the other, zeros where there is none.
  __device__ void put_elements(T* tile, int unit, int64_t k_first, int count) const {
#pragma unroll 1
    for (int i = 0; i < kUnit; ++i) {
      const int r = along_k() ? row(unit) : part_of_rows(unit) * kUnit + i;
      const int k = along_k() ? part(unit) * kUnit + i : depth(unit);
      const int64_t offset = row_offsets_[r];
      float v = 0;
      if (offset >= 0 && k < count) {
        v = load_any(source_.type, source_.data, offset + (k_first + k) * source_.k_stride);
      }
      tile[r * kLd + k] = narrowed<T>(v);
    }
  }

  const TileSource& source_;
  const int64_t (&row_offsets_)[kRows];
  unsigned whole_ = 0;  // bit i: unit i of this thread was fetched
  uint32_t raw_[kMine][kUnitWords];
};

}  // namespace mate::gpu::portable
