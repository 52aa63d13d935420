// The device side of the MUSA runtime for g++: kernels are functions that threads of `simt` call.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "musa_runtime_api.h"
#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

// How csrc/gpu launches kernels where the compiler knows no `<<<>>>`.
#define MATE_LAUNCH(kernel, blocks, threads, shared, stream, ...) \
  simt::launch(blocks, threads, shared, stream, [=] { kernel(__VA_ARGS__); })
#define MATE_DYNAMIC_SHARED(type, name) auto* name = static_cast<type*>(simt::dynamic_shared())

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

#define threadIdx (simt::now->index)
#define blockIdx (simt::block.index)
#define blockDim (simt::block.size)
#define gridDim (simt::block.grid)

inline void __syncthreads() { simt::meet_block(simt::Meeting::kSyncThreads, false); }
inline int __syncthreads_or(int mine) {
  return simt::meet_block(simt::Meeting::kSyncThreadsOr, mine != 0);
}
inline void __syncwarp(unsigned = ~0u) { simt::exchange(simt::Meeting::kSyncWarp, 0); }
inline void __threadfence() {}

inline unsigned __ballot_sync(unsigned, int mine) {
  const simt::Exchanged& all = simt::exchange(simt::Meeting::kBallot, mine != 0);
  unsigned bits = 0;
  for (int i = 0; i < simt::kWarp; ++i) bits |= (all.live >> i & 1 & all.values[i]) << i;
  return bits;
}

namespace simt {

// The value of another lane, or the own one where `from` lies outside of the warp.
template <typename T>
T value_of(Meeting kind, T mine, int from) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "values of 64 bits at most");
  uint64_t bits = 0;
  memcpy(&bits, &mine, sizeof(T));
  const Exchanged& all = exchange(kind, bits);
  if (from < 0 || from >= kWarp) return mine;
  T theirs;
  memcpy(&theirs, &all.values[from], sizeof(T));
  return theirs;
}

}  // namespace simt

template <typename T>
T __shfl_sync(unsigned, T mine, int lane) {
  return simt::value_of(simt::Meeting::kShuffle, mine, lane % simt::kWarp);
}
template <typename T>
T __shfl_up_sync(unsigned, T mine, unsigned step) {
  return simt::value_of(simt::Meeting::kShuffleUp, mine, simt::now->lane - static_cast<int>(step));
}
template <typename T>
T __shfl_xor_sync(unsigned, T mine, int mask) {
  return simt::value_of(simt::Meeting::kShuffleXor, mine, simt::now->lane ^ mask);
}

// One thread runs at a time.
template <typename T>
T atomicAdd(T* at, T addend) {
  const T before = *at;
  *at = before + addend;
  return before;
}
template <typename T>
T atomicMax(T* at, T other) {
  const T before = *at;
  if (before < other) *at = other;
  return before;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof(x));
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}
