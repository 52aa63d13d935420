// Hopper's own instructions: barriers in shared memory, bulk tensor copies, warpgroup products.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace mate::gpu::sm90a {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// A value that the compiler keeps in a register of each thread: neither computed again from the
// thread's number, which takes long to read, nor moved to a register of the warp, which takes as
// long.
__device__ __forceinline__ uint32_t kept(uint32_t x) {
  asm volatile("mov.u32 %0, %0;" : "+r"(x));
  return x;
}

using Barrier = uint64_t;

__device__ __forceinline__ void init_barrier(Barrier* bar, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals));
}

// Makes initialised barriers known to the copy engine and, in a cluster, to the other blocks.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive_at(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void arrive(Barrier* bar) { arrive_at(shared_address(bar)); }

__device__ __forceinline__ void arrive(Barrier* bar, uint32_t count) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(count)
               : "memory");
}

__device__ __forceinline__ void arrive_expecting(Barrier* bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)),
               "r"(bytes)
               : "memory");
}

// Until the phase is over. Loops compute the address in shared memory once. With a time to sleep
// the warp sleeps until the phase ends; without one it asks again and again, in the issue slots of
// the warps that multiply.
__device__ __forceinline__ void wait_at(uint32_t bar, uint32_t phase) {
  constexpr uint32_t kNanoseconds = 10'000'000;
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1, %2;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n}" ::"r"(bar),
      "r"(phase), "n"(kNanoseconds)
      : "memory");
}
__device__ __forceinline__ void wait(Barrier* bar, uint32_t phase) {
  wait_at(shared_address(bar), phase);
}

// Address of the same place in the shared memory of another block of the cluster.
__device__ __forceinline__ uint32_t address_in(uint32_t address, uint32_t block) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(block));
  return remote;
}
__device__ __forceinline__ void arrive_remote(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}

// `bytes` (4 or 16) of global memory to shared memory, without waiting.
template <int bytes>
__device__ __forceinline__ void copy_async(uint32_t to, const void* from) {
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(bytes)
                 : "memory");
  }
}

// An arrival that happens once the thread's copies above are there.
__device__ __forceinline__ void arrive_after_copies(Barrier* bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(bar))
               : "memory");
}

__device__ __forceinline__ float load_shared(uint32_t from) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(from) : "memory");
  return value;
}

__device__ __forceinline__ float2 load_shared_pair(uint32_t from) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from) : "memory");
  return v;
}

__device__ __forceinline__ void store_shared_pair(uint32_t to, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(x), "f"(y) : "memory");
}

// Four floats of shared memory of a block of the cluster, or zeros; without a branch, so that
// several are on their way at a time.
__device__ __forceinline__ float4 load_remote(uint32_t from, bool exists) {
  float4 v{};
  asm volatile(
      "{\n.reg .pred exists;\n"
      "setp.ne.b32 exists, %5, 0;\n"
      "@exists ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];\n}"
      : "+f"(v.x), "+f"(v.y), "+f"(v.z), "+f"(v.w)
      : "r"(from), "r"(static_cast<int>(exists))
      : "memory");
  return v;
}

// Into the second-level cache.
__device__ __forceinline__ void prefetch(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Hints for the second-level cache.
constexpr uint64_t kEvictFirst = 0x12f0000000000000, kEvictLast = 0x14f0000000000000,
                   kEvictNormal = 0x1000000000000000;

// One box of a tensor to shared memory; bytes outside the tensor arrive as zeros and count.
__device__ __forceinline__ void load_box(void* to, const CUtensorMap* map, Barrier* bar, int x,
                                         int y, int z, uint64_t hint) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z), "l"(hint)
      : "memory");
}

// The same to the same place in each block of the cluster that `blocks` names by a bit.
__device__ __forceinline__ void load_box_to(uint16_t blocks, void* to, const CUtensorMap* map,
                                            Barrier* bar, int x, int y, int z, uint64_t hint) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6, %7;" ::"r"(
          shared_address(to)),
      "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z), "h"(blocks), "l"(hint)
      : "memory");
}

__device__ __forceinline__ void store_box(const CUtensorMap* map, uint32_t from, int x, int y,
                                          int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
      "r"(from), "r"(x), "r"(y), "r"(z)
      : "memory");
}

__device__ __forceinline__ void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until all but `left` of the thread's stores have read shared memory, or are complete.
template <int left>
__device__ __forceinline__ void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(left) : "memory");
}
template <int left>
__device__ __forceinline__ void wait_stores() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(left) : "memory");
}

// One float or integer to shared memory, or a zero, without waiting for it.
__device__ __forceinline__ void copy_word(void* to, const void* from, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(exists ? 4 : 0)
               : "memory");
}

// Ordinary writes to shared memory become visible to the copy engine and to warpgroup products.
__device__ __forceinline__ void fence_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ uint32_t block_in_cluster() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ void sync_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

template <int registers>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// Descriptors of tiles of rows of 128 bytes, as the copy engine's 128-byte swizzle lays them out;
// their base is aligned to 1024 bytes. Only the low half depends on the address; adding bytes / 16
// to it moves along the 128 bytes of a row.
__device__ __forceinline__ uint64_t descriptor_at(uint32_t low) {
  constexpr uint64_t kHigh = (uint64_t{1} << 62) | (uint64_t{8 * 128 / 16} << 32);
  return kHigh | low;
}
__device__ __forceinline__ uint32_t descriptor_low(uint32_t address) {
  return ((address & 0x3ffff) >> 4) | (1u << 16);
}

// The same where the 128 bytes lie along the rows of the product: tiles are planes of 64 rows and
// 64 steps along k, one after the other. 16 steps are kTurnedStep further.
constexpr int kTurnedPlaneBytes = 64 * 128;
constexpr uint32_t kTurnedStep = 16 * 128 / 16;
__device__ __forceinline__ uint32_t turned_descriptor_low(uint32_t address) {
  return ((address & 0x3ffff) >> 4) | (static_cast<uint32_t>(kTurnedPlaneBytes / 16) << 16);
}

__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int left>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}

// The compiler must not move uses of accumulators across products in flight.
template <int count>
__device__ __forceinline__ void fence_sums(float (&sums)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

}  // namespace mate::gpu::sm90a
