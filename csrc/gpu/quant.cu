#include "gpu/launch_kernel.h"
#include "gpu/quant.h"
#include "gpu/quant_group.cuh"

namespace mate::gpu {
namespace {

constexpr int kThreads = 256;

struct Products {
  Source in;
  void* out;
  int64_t out_stride;
  Divider vectors_per_row;
  uint32_t vectors;
};

template <DType type, int n>
__global__ void __launch_bounds__(kThreads) silu_and_mul_kernel(Products p) {
  constexpr int kHeld = 2;  // vectors that a thread loads before it looks at them
  for (uint32_t first = blockIdx.x * kHeld * kThreads + threadIdx.x; first < p.vectors;
       first += gridDim.x * kHeld * kThreads) {
    Input<type, true, n> in[kHeld];
    uint32_t rows[kHeld], vectors[kHeld];
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const uint32_t i = first + h * kThreads;
      rows[h] = p.vectors_per_row.divide(i, vectors[h]);
      if (i < p.vectors) {
        in[h].load(p.in, rows[h] * p.in.row_stride + static_cast<int64_t>(vectors[h]) * n);
      }
    }
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      if (first + h * kThreads >= p.vectors) break;
      float v[n];
      in[h].floats(p.in, v);
      store_columns<type>(p.out, rows[h] * p.out_stride + static_cast<int64_t>(vectors[h]) * n, v);
    }
  }
}

// Groups of columns, each shared by a team of consecutive threads within a warp, or by a block.
struct GroupsOfRows {
  Source in;
  void* q;
  int64_t q_stride;
  float* scale;
  int64_t scale_row_stride, scale_col_stride;
  bool power_of_two;
  int64_t cols, group;
  Divider groups_per_row;
  uint32_t num_groups;  // of all rows
  int log_team;
  uint32_t teams_per_block;
};

// Largest magnitude of a team's group.
__device__ inline uint32_t largest_of_group(uint32_t most, int team, uint32_t (&room)[kWarp]) {
  most = largest_of_team(most, team);
  if (team <= kWarp) return most;
  __syncthreads();  // the group before was read
  const int lane = threadIdx.x % kWarp;
  if (lane == 0) room[threadIdx.x / kWarp] = most;
  __syncthreads();
  return largest_of_team(lane < team / kWarp ? room[lane] : 0, kWarp);
}

// Threads of a team, which has a block of its own if it is more than a warp. Products need more
// registers than what is read as it is.
template <bool gated>
constexpr int kMostTeam = gated ? 256 : 1024;

// A thread keeps kHeld vectors of a group.
template <DType type, DType code, bool gated, int n, int kHeld>
__global__ void __launch_bounds__(kMostTeam<gated>, gated ? 3 : 1) quantise_kernel(GroupsOfRows p) {
  __shared__ uint32_t room[kWarp];
  const int team = 1 << p.log_team, lane = threadIdx.x & (team - 1);
  for (uint32_t first = blockIdx.x * p.teams_per_block; first < p.num_groups;
       first += gridDim.x * p.teams_per_block) {
    const uint32_t unit = first + (threadIdx.x >> p.log_team);
    uint32_t group;
    const int64_t row = p.groups_per_row.divide(unit, group);
    const int64_t col = group * p.group, left = p.cols - col;
    const int64_t count = unit >= p.num_groups ? 0 : left < p.group ? left : p.group;
    quantise_group<type, code, gated, n, kHeld>(
        p.in, {row * p.in.row_stride + col, row * p.q_stride + col, count, lane, team}, p.q, 1e-10f,
        p.power_of_two, [&](uint32_t most) { return largest_of_group(most, team, room); },
        [&](float scale) {
          p.scale[row * p.scale_row_stride + group * p.scale_col_stride] = scale;
        });
  }
}

bool is_aligned(const Matrix& x) {
  return (address(x.data) | x.row_stride * size_of(x.type)) % 16 == 0;
}

template <DType type, int n>
void launch_silu_and_mul(const SiluAndMul& p, const Launch& launch) {
  for_launches(p.rows, p.cols / n, [&](int64_t row, int64_t rows, int64_t vector, int64_t vectors) {
    const Products products{{p.in, p.cols, true, row, vector * n},
                            const_cast<void*>(Source::at(p.out, row, vector * n)),
                            p.out.row_stride,
                            Divider(vectors),
                            static_cast<uint32_t>(rows * vectors)};
    const unsigned grid = grid_of(blocks_of(products.vectors, 2 * kThreads), kThreads, launch);
    launch_kernel("silu_and_mul", silu_and_mul_kernel<type, n>, {grid, kThreads}, launch, products);
  });
}

template <DType type, DType code, bool gated, int n, int kHeld>
void launch_quantise(const Quantise& p, const Launch& launch) {
  const int64_t width = std::min(p.group, p.cols), num_groups = blocks_of(p.cols, p.group);
  const int log_team =
      std::min(log_above(blocks_of(width, n * kHeld)), log_above(kMostTeam<gated>));
  const int threads = 1 << log_team > kWarp ? 1 << log_team : kThreads;
  for_launches(
      p.rows, num_groups, [&](int64_t row, int64_t rows, int64_t group, int64_t num_groups) {
        const int64_t col = group * p.group;
        const GroupsOfRows groups{{p.in, p.cols, gated, row, col},
                                  const_cast<void*>(Source::at(p.q, row, col)),
                                  p.q.row_stride,
                                  p.scale + row * p.scale_row_stride + group * p.scale_col_stride,
                                  p.scale_row_stride,
                                  p.scale_col_stride,
                                  p.power_of_two,
                                  std::min(p.cols - col, num_groups * p.group),
                                  p.group,
                                  Divider(num_groups),
                                  static_cast<uint32_t>(rows * num_groups),
                                  log_team,
                                  static_cast<uint32_t>(threads >> log_team)};
        const int64_t blocks = blocks_of(groups.num_groups, groups.teams_per_block);
        launch_kernel("quantise", quantise_kernel<type, code, gated, n, kHeld>,
                      {grid_of(blocks, threads, launch), threads}, launch, groups);
      });
}

}  // namespace

void silu_and_mul(const SiluAndMul& p, const Launch& launch) {
  if (p.rows == 0 || p.cols == 0) return;
  with_wide_type(p.in.x.type, [&](auto type) {
    constexpr int n = kPerVector<type()>;
    if (is_aligned(p.in.x) && is_aligned(p.out) && p.cols % n == 0) {
      launch_silu_and_mul<type(), n>(p, launch);
    } else {
      launch_silu_and_mul<type(), 1>(p, launch);
    }
  });
}

void quantise(const Quantise& p, const Launch& launch) {
  if (p.rows == 0 || p.cols == 0) return;
  with_wide_type(p.in.x.type, [&](auto type) {
    with_fp8_type(p.q.type, [&](auto code) {
      constexpr int n = kPerVector<type()>;
      const bool whole = (p.cols | address(p.q.data) | p.q.row_stride) % n == 0 &&
                         (p.group % n == 0 || p.group >= p.cols) && is_aligned(p.in.x);
      // Products cost more than a thread should do one after the other while others have nothing.
      const bool few = p.rows * p.cols < int64_t{launch.num_sms} * 1024 * 2 * n;
      auto launch_with = [&](auto gated) {
        if (!whole) return launch_quantise<type(), code(), gated(), 1, 4>(p, launch);
        if constexpr (gated()) {
          if (few) return launch_quantise<type(), code(), true, n, 2>(p, launch);
        }
        launch_quantise<type(), code(), gated(), n, 4>(p, launch);
      };
      if (p.gated) {
        launch_with(std::true_type());
      } else {
        launch_with(std::false_type());
      }
    });
  });
}

}  // namespace mate::gpu
