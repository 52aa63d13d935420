#include "gpu/columns.cuh"
#include "gpu/launch_kernel.h"
#include "gpu/moe.h"
#include "gpu/scratch.h"
#include "gpu/slots.cuh"
#include "gpu/units.cuh"

namespace mate::gpu {
namespace {

constexpr int kTableThreads = 256;

__global__ void __launch_bounds__(kTableThreads)
    rows_of_slots_kernel(SlotsOfRows p, int64_t num_slots, int32_t* row_of) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTableThreads;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kTableThreads + threadIdx.x;
       row < p.num_rows; row += step) {
    const int64_t slot = p.slot_of[row * p.stride];
    if (slot >= 0 && slot < num_slots) atomicMax(row_of + slot, static_cast<int32_t>(row));
  }
}

// A block sums a part of one token's columns.
constexpr int kSumThreads = 128;
constexpr int kSlots = 64;   // that a block looks up at a time
constexpr int kAddends = 4;  // rows that are loaded before they are added

struct Sums {
  Unpermute p;  // row_of null: blocks look their slots up among all
  SlotsOfRows slots;
  Divider parts_per_row;
  int64_t first_token, first_part;
  uint32_t num_parts;  // of all tokens
};

// Rows and weights of the next slots of a token, at most kSlots, to shared memory.
__device__ inline void find_addends(const Sums& s, int64_t token, int64_t first, int count,
                                    int32_t (&rows)[kSlots], float (&weights)[kSlots]) {
  const int64_t first_slot = token * s.p.topk + first;
  __syncthreads();  // those before were read
  for (int j = threadIdx.x; j < count; j += kSumThreads) {
    const int32_t row = s.p.row_of == nullptr ? -1 : s.p.row_of[first_slot + j];
    rows[j] = row < s.slots.num_rows ? row : -1;
    weights[j] = weight_of_slot(s.p.weights, token, first + j);
  }
  __syncthreads();
  if (s.p.row_of != nullptr) return;
#pragma unroll 8
  for (int64_t row = threadIdx.x; row < s.slots.num_rows; row += kSumThreads) {
    const int64_t j = s.slots.slot_of[row * s.slots.stride] - first_slot;
    if (j >= 0 && j < count) atomicMax(rows + j, static_cast<int32_t>(row));
  }
  __syncthreads();
}

template <DType in, DType out, int n>
__global__ void __launch_bounds__(kSumThreads, 8) unpermute_kernel(Sums s) {
  __shared__ int32_t rows[kSlots];
  __shared__ float weights[kSlots];
  const Unpermute& p = s.p;
  for (uint32_t unit = blockIdx.x; unit < s.num_parts; unit += gridDim.x) {
    uint32_t part;
    const int64_t token = s.first_token + s.parts_per_row.divide(unit, part);
    const int64_t col = ((s.first_part + part) * kSumThreads + threadIdx.x) * n;
    const bool exists = col < p.cols;
    float sums[n] = {};
    for (int64_t first = 0; first < p.topk; first += kSlots) {
      const int count = static_cast<int>(p.topk - first < kSlots ? p.topk - first : kSlots);
      find_addends(s, token, first, count, rows, weights);
      if (!exists) continue;
      for (int j = 0; j < count; j += kAddends) {
        Columns<in, n> addends[kAddends];
#pragma unroll
        for (int i = 0; i < kAddends; ++i) {
          const int64_t row = j + i < count ? rows[j + i] : -1;
          if (row >= 0) addends[i].load(p.rows.data, row * p.rows.row_stride + col);
        }
#pragma unroll
        for (int i = 0; i < kAddends; ++i) {
          if (j + i >= count || rows[j + i] < 0) continue;
          float v[n];
          addends[i].floats(v);
#pragma unroll
          for (int c = 0; c < n; ++c) sums[c] = fmaf(v[c], weights[j + i], sums[c]);
        }
      }
    }
    if (exists) store_columns<out>(p.out.data, token * p.out.row_stride + col, sums);
  }
}

template <DType in, DType out, int n>
void launch_sums(const Sums& sums, const Launch& launch) {
  const int64_t parts = blocks_of(sums.p.cols, kSumThreads * n);
  for_launches(sums.p.num_tokens, parts,
               [&](int64_t token, int64_t tokens, int64_t part, int64_t num_parts) {
                 Sums s = sums;
                 s.parts_per_row = Divider(num_parts);
                 s.first_token = token;
                 s.first_part = part;
                 s.num_parts = static_cast<uint32_t>(tokens * num_parts);
                 launch_kernel("moe_unpermute", unpermute_kernel<in, out, n>,
                               {grid_of(s.num_parts, kSumThreads, launch), kSumThreads}, launch, s);
               });
}

void launch_unpermute(const Sums& sums, const Launch& launch) {
  const Unpermute& p = sums.p;
  with_wide_type(p.rows.type, [&](auto in) {
    with_wide_type(p.out.type, [&](auto out) {
      constexpr int n = kPerVector<in()>;
      constexpr int64_t bytes = std::min<int64_t>(n * size_of(out()), 16);
      const bool whole =
          p.cols % n == 0 &&
          (address(p.rows.data) | p.rows.row_stride * size_of(p.rows.type)) % 16 == 0 &&
          (address(p.out.data) | p.out.row_stride * size_of(p.out.type)) % bytes == 0;
      if (whole) {
        launch_sums<in(), out(), n>(sums, launch);
      } else {
        launch_sums<in(), out(), 1>(sums, launch);
      }
    });
  });
}

}  // namespace

void unpermute(const Unpermute& p, const SlotsOfRows& slots, const Launch& launch) {
  if (p.num_tokens == 0 || p.cols == 0) return;
  const int64_t num_slots = p.num_tokens * p.topk;
  Sums sums{p, slots, Divider(1), 0, 0, 0};
  if (p.row_of != nullptr) return launch_unpermute(sums, launch);
  // Few rows are faster searched by every block than turned into a table.
  constexpr int64_t kFewRows = 8192, kFewLooks = 1 << 21;
  const int64_t blocks = p.num_tokens * blocks_of(p.cols, kSumThreads * 8);
  if (slots.num_rows <= kFewRows && slots.num_rows * blocks <= kFewLooks) {
    return launch_unpermute(sums, launch);
  }
  const Scratch row_of(num_slots * sizeof(int32_t), launch);
  fill_bytes(row_of.at<void>(), 0xff, num_slots * sizeof(int32_t), launch, "moe_unpermute");
  const unsigned blocks_of_rows =
      grid_of(blocks_of(slots.num_rows, kTableThreads), kTableThreads, launch);
  launch_kernel("moe_unpermute", rows_of_slots_kernel, {blocks_of_rows, kTableThreads}, launch,
                slots, num_slots, row_of.at<int32_t>());
  sums.p.row_of = row_of.at<int32_t>();
  launch_unpermute(sums, launch);
}

}  // namespace mate::gpu
