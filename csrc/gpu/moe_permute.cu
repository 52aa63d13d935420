#include "gpu/moe.h"
#include "gpu/slots.cuh"
#include "gpu/units.cuh"

namespace mate::gpu {
namespace {

// Elements of one access times a weight, each rounded once.
template <DType type>
__device__ inline uint32_t scaled(uint32_t word, float weight) {
  float v[kPerWord<type>];
  unpack<type>(word, v);
#pragma unroll
  for (float& x : v) x *= weight;
  return pack<type>(v);
}

template <DType type>
__device__ inline uint16_t scaled(uint16_t element, float weight) {
  return static_cast<uint16_t>(scaled<type>(static_cast<uint32_t>(element), weight));
}

template <DType type>
__device__ inline uint4 scaled(uint4 v, float weight) {
  return make_uint4(scaled<type>(v.x, weight), scaled<type>(v.y, weight), scaled<type>(v.z, weight),
                    scaled<type>(v.w, weight));
}

// Copies where nothing is scaled.
struct Plain {
  template <typename T>
  __device__ T operator()(T v, float) const {
    return v;
  }
};

template <DType type>
struct Scaled {
  template <typename T>
  __device__ T operator()(T v, float weight) const {
    return scaled<type>(v, weight);
  }
};

// Parts of rows, each copied by a team of lanes. Row strides and widths count accesses.
constexpr int kThreads = 256;
constexpr int kCopies = 4;  // accesses of a lane

struct Copies {
  const void* hidden;
  void* rows;
  int64_t hidden_stride, rows_stride, width;
  const int32_t* slot_of;
  int64_t slot_stride, num_slots;
  SlotWeights weights;
  Divider topk, parts_per_row;
  int64_t first_part;
  uint32_t num_parts;  // of all rows
  int log_team;
};

template <typename T, typename Op>
__global__ void __launch_bounds__(kThreads) permute_kernel(Copies p, Op op) {
  const uint32_t teams = kThreads >> p.log_team;
  const int team = 1 << p.log_team, lane = threadIdx.x & (team - 1);
  for (uint32_t unit = blockIdx.x * teams + (threadIdx.x >> p.log_team); unit < p.num_parts;
       unit += gridDim.x * teams) {
    uint32_t part, j;
    const int64_t row = p.parts_per_row.divide(unit, part);
    const int64_t slot = p.slot_of[row * p.slot_stride];
    if (slot < 0 || slot >= p.num_slots) continue;
    const int64_t token = p.topk.divide(static_cast<uint32_t>(slot), j);
    const int64_t first = (p.first_part + part) * (kCopies << p.log_team) + lane;
    const T* from = static_cast<const T*>(p.hidden) + token * p.hidden_stride + first;
    T* to = static_cast<T*>(p.rows) + row * p.rows_stride + first;
    T v[kCopies];
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (first + i * team < p.width) v[i] = from[i * team];
    }
    const float weight = weight_of_slot(p.weights, token, j);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (first + i * team < p.width) to[i * team] = op(v[i], weight);
    }
  }
}

template <typename T, typename Op>
void launch_permute(const Permute& p, const Op& op, const Launch& launch) {
  const int64_t size = size_of(p.hidden.type), access = sizeof(T);
  const int64_t width = p.cols * size / access, rows_stride = p.rows.row_stride * size / access;
  const int log_team = std::min(log_above(blocks_of(width, kCopies)), 5);
  const int64_t parts = blocks_of(width, kCopies << log_team);
  for_launches(p.num_rows, parts, [&](int64_t row, int64_t rows, int64_t part, int64_t num_parts) {
    const Copies copies{p.hidden.data,
                        static_cast<T*>(p.rows.data) + row * rows_stride,
                        p.hidden.row_stride * size / access,
                        rows_stride,
                        width,
                        p.slot_of + row * p.slot_stride,
                        p.slot_stride,
                        p.num_slots,
                        p.weights,
                        Divider(p.topk),
                        Divider(num_parts),
                        part,
                        static_cast<uint32_t>(rows * num_parts),
                        log_team};
    const int64_t blocks = blocks_of(copies.num_parts, kThreads >> log_team);
    permute_kernel<T>
        <<<grid_of(blocks, kThreads, launch), kThreads, 0, launch.stream>>>(copies, op);
    check_launch("moe_permute");
  });
}

}  // namespace

void permute(const Permute& p, const Launch& launch) {
  if (p.num_rows == 0 || p.num_slots == 0 || p.cols == 0) return;
  const int64_t size = size_of(p.hidden.type);
  const int64_t alignment = address(p.hidden.data) | address(p.rows.data) | p.cols * size |
                            p.hidden.row_stride * size | p.rows.row_stride * size;
  if (p.weights.data == nullptr) {
    return with_access(alignment,
                       [&](auto access) { launch_permute<decltype(access)>(p, Plain(), launch); });
  }
  with_wide_type(p.hidden.type, [&](auto type) {
    using Element = std::conditional_t<type() == DType::kF32, uint32_t, uint16_t>;
    if (alignment % 16 == 0) {
      launch_permute<uint4>(p, Scaled<type()>(), launch);
    } else {
      launch_permute<Element>(p, Scaled<type()>(), launch);
    }
  });
}

}  // namespace mate::gpu
