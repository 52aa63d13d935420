#include "gpu/sm90a/gemm_k_major.h"
#include "gpu/sm90a/gemm_ragged_k.cuh"
#include "gpu/units.cuh"

namespace mate::gpu::sm90a {
namespace {

constexpr int kThreads = 256, kBlocksPerSm = 8;
constexpr int kSide = 128;  // of what a block turns at a time, in both directions

// Bytes [plane, k, row] with rows contiguous to [plane, row, k].
struct Turn {
  const char* from;
  int64_t from_plane, from_k;
  char* to;
  int64_t to_plane, to_row;
  int64_t num_rows, k, planes;
  int64_t k_blocks;  // of a plane
  Rows groups;       // kRaggedK: where blocks of k are; any other mode: one after the other
};

__device__ __forceinline__ uint4 load_row(const char* from, int64_t left) {
  if (left >= 16) return *reinterpret_cast<const uint4*>(from);
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (i < left) words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(from[i])) << i % 4 * 8;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Four words of four bytes, turned.
__device__ __forceinline__ void turn_bytes(const uint32_t (&in)[4], uint32_t (&out)[4]) {
  const uint32_t a = __byte_perm(in[0], in[1], 0x5140), b = __byte_perm(in[2], in[3], 0x5140);
  const uint32_t c = __byte_perm(in[0], in[1], 0x7362), d = __byte_perm(in[2], in[3], 0x7362);
  out[0] = __byte_perm(a, b, 0x5410), out[1] = __byte_perm(a, b, 0x7632);
  out[2] = __byte_perm(c, d, 0x5410), out[3] = __byte_perm(c, d, 0x7632);
}

// One square; steps past `count` along k become zeros. Its rows are kept with their 16-byte parts
// exchanged, so that neither side meets a bank twice.
__device__ __forceinline__ void turn_square(const char* from, int64_t from_k, int count, char* to,
                                            int64_t to_row, int64_t rows_left,
                                            char (&square)[kSide * kSide]) {
  const int part = threadIdx.x % 8, four = threadIdx.x / 8;  // 16 rows, 4 steps along k
  uint32_t in[4][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int k = four * 4 + i;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (k < count && part * 16 < rows_left) {
      v = load_row(from + k * from_k + part * 16, rows_left - part * 16);
    }
    in[0][i] = v.x, in[1][i] = v.y, in[2][i] = v.z, in[3][i] = v.w;
  }
  __syncthreads();  // the square before has been written
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    uint32_t out[4];
    turn_bytes(in[word], out);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = part * 16 + word * 4 + i;
      char* at = square + row * kSide + ((four / 4) ^ part) * 16 + four % 4 * 4;
      *reinterpret_cast<uint32_t*>(at) = out[i];
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = i * (kThreads / 8) + threadIdx.x / 8, at = threadIdx.x % 8;
    if (row >= rows_left) break;
    *reinterpret_cast<uint4*>(to + row * to_row + at * 16) =
        *reinterpret_cast<const uint4*>(square + row * kSide + (at ^ (row / 16)) * 16);
  }
}

// Where blocks of k of groups start, in shared memory.
struct GroupBlocks {
  int *first, *count, *block;  // [num_groups] as in KRange

  static int bytes(const Rows& rows) {
    return rows.mode == RowMode::kRaggedK ? static_cast<int>(3 * rows.num_groups) * 4 : 0;
  }
  __device__ GroupBlocks(int* memory, const Turn& p)
      : first(memory), count(first + p.groups.num_groups), block(count + p.groups.num_groups) {
    if (p.groups.mode == RowMode::kRaggedK && threadIdx.x < 32) {
      each_k_range(p.groups, p.k, p.k_blocks, [&](int g, const KRange& range) {
        if (g >= p.groups.num_groups) return;
        first[g] = range.first, count[g] = range.count, block[g] = range.block;
      });
    }
    __syncthreads();
  }

  // Start and number of the steps along k of a block; none where it is no group's.
  __device__ int find(int64_t at, int groups, int& steps) const {
    steps = 0;
    for (int g = 0; g < groups; ++g) {
      const int64_t inside = (at - block[g]) * kSide;
      if (inside < 0 || inside >= count[g]) continue;
      steps = static_cast<int>(min(int64_t{kSide}, count[g] - inside));
      return first[g] + static_cast<int>(inside);
    }
    return 0;
  }
};

__global__ void __launch_bounds__(kThreads, kBlocksPerSm) turn_operand(const Turn p) {
  __shared__ __align__(16) char square[kSide * kSide];
  extern __shared__ int memory[];
  const GroupBlocks blocks(memory, p);
  const int64_t strips = ceil_div(p.num_rows, kSide), units = p.planes * p.k_blocks * strips;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t strip = unit % strips, at = unit / strips;
    const int64_t plane = at / p.k_blocks, block = at % p.k_blocks, row = strip * kSide;
    int64_t k = block * kSide;
    int steps = static_cast<int>(min(int64_t{kSide}, p.k - k));
    if (p.groups.mode == RowMode::kRaggedK) {
      k = blocks.find(block, static_cast<int>(p.groups.num_groups), steps);
      if (steps == 0) continue;
    }
    turn_square(p.from + plane * p.from_plane + k * p.from_k + row, p.from_k, steps,
                p.to + plane * p.to_plane + row * p.to_row + block * kSide, p.to_row,
                p.num_rows - row, square);
  }
}

// Bytes of a row of a copy.
int64_t row_bytes(const Gemm& p) {
  return (p.rows.mode == RowMode::kRaggedK ? p.scale_blocks : ceil_div(p.k, kSide)) * kSide;
}

// Bytes of the copy of an operand, of which `box` tells the sizes; 0 where none is made.
int64_t copy_bytes(const Gemm& p, const Operand& x, const TensorBox& box) {
  return x.k_stride == 1 ? 0 : box.x * box.z * row_bytes(p);
}

void turn(const Gemm& p, Operand& x, const TensorBox& box, char* to, const Launch& launch) {
  if (x.k_stride == 1) return;
  Turn t{};
  t.from = static_cast<const char*>(x.data);
  t.from_plane = x.group_stride;
  t.from_k = x.k_stride;
  t.to = to;
  t.to_plane = box.x * row_bytes(p);
  t.to_row = row_bytes(p);
  t.num_rows = box.x;
  t.k = p.k;
  t.planes = box.z;
  t.k_blocks = t.to_row / kSide;
  t.groups = p.rows;
  const int64_t units = t.planes * t.k_blocks * ceil_div(t.num_rows, kSide);
  const auto grid =
      static_cast<unsigned>(std::min<int64_t>(units, int64_t{launch.num_sms} * kBlocksPerSm));
  turn_operand<<<grid, kThreads, GroupBlocks::bytes(p.rows), launch.stream>>>(t);
  check_launch("K-major copy");
  x = {to, x.type, t.to_plane, t.to_row, 1};
}

int64_t bytes_of_a(const Gemm& p) { return copy_bytes(p, p.a, turned_a_box(p, 1, 1)); }
int64_t bytes_of_b(const Gemm& p) { return copy_bytes(p, p.b, turned_b_box(p, 1, 1)); }

}  // namespace

KMajor::KMajor(const Gemm& p, const Launch& launch)
    : memory_(bytes_of_a(p) + bytes_of_b(p), launch), gemm_(p) {
  turn(p, gemm_.a, turned_a_box(p, 1, 1), memory_.at<char>(), launch);
  turn(p, gemm_.b, turned_b_box(p, 1, 1), memory_.at<char>(bytes_of_a(p)), launch);
}

}  // namespace mate::gpu::sm90a
