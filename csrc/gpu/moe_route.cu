// A stable counting sort of slots by expert: one block for the few slots of a decode step, else
// one warp to a chunk of slots. Only integers are added, so that the outcome is always the same.
#include "gpu/block_scan.cuh"
#include "gpu/launch_kernel.h"
#include "gpu/moe.h"
#include "gpu/scratch.h"

namespace mate::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 256;              // slots that a warp sorts one after the other
constexpr int kBlockSlots = 1024;        // at most, for one block
constexpr int kBlockShared = 40 * 1024;  // bytes

struct Slots {
  Choices choices;
  Layout layout;
  Divider topk;
  int64_t count;
  int id_bits;  // of the number of an expert plus one
};

// Local expert of a slot, or -1.
__device__ inline int local_expert(const Slots& s, int64_t slot) {
  const Choices& c = s.choices;
  uint32_t j;
  const int64_t token = s.topk.divide(static_cast<uint32_t>(slot), j);
  const int64_t at = token * c.row_stride + j * c.col_stride;
  int64_t id =
      c.is_64_bit ? static_cast<const int64_t*>(c.ids)[at] : static_cast<const int32_t*>(c.ids)[at];
  if (c.expert_map != nullptr) {
    if (id < 0 || id >= c.num_global) return -1;
    id = c.expert_map[id * c.map_stride];
  }
  return id >= 0 && id < s.layout.num_experts ? static_cast<int>(id) : -1;
}

// Lanes of the warp whose expert is that of this one.
__device__ inline unsigned peers_of(int expert, int id_bits) {
  const unsigned id = expert + 1;
  unsigned peers = kAllLanes;
  for (int bit = 0; bit < id_bits; ++bit) {
    const bool is_set = id >> bit & 1;
    const unsigned set = __ballot_sync(kAllLanes, is_set);
    peers &= is_set ? set : ~set;
  }
  return peers;
}

__device__ inline int peers_before(unsigned peers) {
  return __popc(peers & ((1u << (threadIdx.x % kWarp)) - 1));
}

// The rank-th slot of an expert whose rows start at `first`, or one of no expert.
__device__ inline void put(const Layout& p, int64_t slot, int expert, int64_t first, int64_t rank) {
  const int64_t row = first + rank;
  const bool fits = expert >= 0 && row < p.num_rows && (p.capacity == 0 || rank < p.capacity);
  p.row_of_slot[slot] = fits ? static_cast<int32_t>(row) : -1;
  if (!fits) return;
  p.slot_of[row] = static_cast<int32_t>(slot);
  p.expert_of_row[row] = expert;
}

// Writes counts and ends, and the first row of each expert. All of one block.
template <typename CountOf>
__device__ void place_experts(const Layout& p, const CountOf& count_of, int32_t* firsts) {
  __shared__ int64_t sums[kWarp], largest[kWarp];
  int64_t rows_before = 0, end_before = 0;
  for (int64_t base = 0; base < p.num_experts; base += blockDim.x) {
    const int64_t expert = base + threadIdx.x;
    const bool exists = expert < p.num_experts;
    int64_t count = exists ? count_of(expert) : 0;
    if (p.capacity > 0 && count > p.capacity) count = p.capacity;
    const int64_t padded = (count + p.alignment - 1) / p.alignment * p.alignment;
    __syncthreads();
    const Prefix<int64_t> rows = scan_block(padded, sums, Sum());
    const int64_t first = p.capacity > 0 ? expert * p.capacity : rows_before + rows.before;
    // An expert without rows repeats the end before it, so that ends stay within the rows.
    int64_t end = count > 0 ? first + count : 0;
    const Prefix<int64_t> ends = scan_block(end, largest, Larger());
    if (p.capacity > 0) {
      end = first + count;
    } else if (count == 0) {
      end = Larger()(ends.before, end_before);
    }
    if (exists) {
      p.counts[expert] = static_cast<int32_t>(count);
      p.ends[expert] = static_cast<int32_t>(end);
      firsts[expert] = static_cast<int32_t>(first);
    }
    rows_before += rows.all;
    end_before = Larger()(ends.all, end_before);
  }
}

__device__ inline void clear_rows(const Layout& p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.num_rows;
       i += step) {
    p.slot_of[i] = p.expert_of_row[i] = -1;
  }
}

__global__ void __launch_bounds__(kBlockSlots) route_block_kernel(Slots s) {
  MATE_DYNAMIC_SHARED(int32_t, shared);
  const Layout& p = s.layout;
  const int num_warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
  int32_t* firsts = shared;
  auto* of_warps = reinterpret_cast<uint8_t*>(shared + p.num_experts);  // [num_warps, num_experts]
  for (int64_t i = threadIdx.x; i < num_warps * p.num_experts; i += blockDim.x) of_warps[i] = 0;
  clear_rows(p);
  __syncthreads();
  const int64_t slot = threadIdx.x;
  const int expert = slot < s.count ? local_expert(s, slot) : -1;
  const unsigned peers = peers_of(expert, s.id_bits);
  int64_t rank = peers_before(peers);
  if (expert >= 0 && rank == 0) {
    of_warps[warp * p.num_experts + expert] = static_cast<uint8_t>(__popc(peers));
  }
  __syncthreads();
  auto count_of = [&](int64_t e) {
    int64_t count = 0;
    for (int w = 0; w < num_warps; ++w) count += of_warps[w * p.num_experts + e];
    return count;
  };
  place_experts(p, count_of, firsts);
  __syncthreads();
  if (slot >= s.count) return;
  if (expert < 0) return put(p, slot, -1, 0, 0);
  for (int w = 0; w < warp; ++w) rank += of_warps[w * p.num_experts + expert];
  put(p, slot, expert, firsts[expert], rank);
}

// Memory of a sort by chunks; the tally and the number of experts done start as zeros.
struct Room {
  int32_t* tally;  // [num_experts, num_chunks] slots, then slots in earlier chunks
  int32_t* num_done;
  int32_t* totals;  // [num_experts]
  int32_t* firsts;  // [num_experts]
  int64_t num_chunks;
};

__global__ void __launch_bounds__(kThreads) count_slots_kernel(Slots s, Room room) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t slot = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; slot < s.count;
       slot += step) {
    const int expert = local_expert(s, slot);
    if (expert >= 0) atomicAdd(room.tally + expert * room.num_chunks + slot / kChunk, 1);
  }
  clear_rows(s.layout);
}

// A warp to an expert; the last block to finish places all experts.
__global__ void __launch_bounds__(kThreads) scan_chunks_kernel(Layout p, Room room) {
  __shared__ bool is_last;
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t expert = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
       expert < p.num_experts; expert += warps) {
    int32_t* tally = room.tally + expert * room.num_chunks;
    int32_t total = 0;
    for (int64_t base = 0; base < room.num_chunks; base += kWarp) {
      const bool exists = base + lane < room.num_chunks;
      const int32_t count = exists ? tally[base + lane] : 0;
      const int32_t upto = scan_warp(count, Sum());
      if (exists) tally[base + lane] = total + upto - count;
      total += __shfl_sync(kAllLanes, upto, kWarp - 1);
    }
    if (lane == 0) room.totals[expert] = total;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(room.num_done, 1) == static_cast<int>(gridDim.x) - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  place_experts(p, [&](int64_t e) { return int64_t{room.totals[e]}; }, room.firsts);
}

// A warp to a chunk, whose column of the tally no other warp uses.
__global__ void __launch_bounds__(kThreads) place_slots_kernel(Slots s, Room room) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t chunk = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
       chunk < room.num_chunks; chunk += warps) {
    int experts[kChunk / kWarp];
#pragma unroll
    for (int i = 0; i < kChunk / kWarp; ++i) {
      const int64_t slot = chunk * kChunk + i * kWarp + lane;
      experts[i] = slot < s.count ? local_expert(s, slot) : -1;
    }
#pragma unroll
    for (int i = 0; i < kChunk / kWarp; ++i) {
      const int expert = experts[i];
      const unsigned peers = peers_of(expert, s.id_bits);
      const int before = peers_before(peers);
      int32_t* tally = room.tally + (expert < 0 ? 0 : expert) * room.num_chunks + chunk;
      const int32_t earlier = expert < 0 ? 0 : *tally;
      __syncwarp();
      if (expert >= 0 && before == 0) *tally = earlier + __popc(peers);
      __syncwarp();
      const int64_t slot = chunk * kChunk + i * kWarp + lane;
      if (slot >= s.count) continue;
      put(s.layout, slot, expert, expert < 0 ? 0 : room.firsts[expert], earlier + before);
    }
  }
}

void sort_by_chunks(const Slots& s, const Launch& launch) {
  const Layout& p = s.layout;
  const int64_t chunks = blocks_of(s.count, kChunk), tally = p.num_experts * chunks;
  const Scratch scratch((tally + 1 + 2 * p.num_experts) * sizeof(int32_t), launch);
  auto* words = scratch.at<int32_t>();
  const Room room{words, words + tally, words + tally + 1, words + tally + 1 + p.num_experts,
                  chunks};
  fill_bytes(words, 0, (tally + 1) * sizeof(int32_t), launch, "moe_route");
  auto grid = [&](int64_t blocks) {
    return Grid{grid_of(std::max<int64_t>(blocks, 1), kThreads, launch), kThreads};
  };
  constexpr int kWarps = kThreads / kWarp;
  launch_kernel("moe_route", count_slots_kernel,
                grid(blocks_of(std::max(s.count, p.num_rows), kThreads)), launch, s, room);
  launch_kernel("moe_route", scan_chunks_kernel, grid(blocks_of(p.num_experts, kWarps)), launch, p,
                room);
  launch_kernel("moe_route", place_slots_kernel, grid(blocks_of(chunks, kWarps)), launch, s, room);
}

}  // namespace

void route(const Choices& choices, const Layout& layout, const Launch& launch) {
  const int64_t count = choices.num_tokens * choices.topk;
  const Slots slots{choices, layout, Divider(std::max<int64_t>(choices.topk, 1)), count,
                    log_above(layout.num_experts + 1)};
  const int64_t threads = std::max<int64_t>(blocks_of(count, kWarp) * kWarp, kThreads);
  const int64_t shared =
      layout.num_experts * (threads / kWarp + static_cast<int64_t>(sizeof(int32_t)));
  if (count > kBlockSlots || shared > kBlockShared) return sort_by_chunks(slots, launch);
  launch_kernel("moe_route", route_block_kernel, {1, threads, shared}, launch, slots);
}

}  // namespace mate::gpu
