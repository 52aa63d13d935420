#include "gpu/launch_kernel.h"
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
constexpr int kSlots = 4;   // that are looked up before their rows are written

struct Copies {
  Permute p;
  int64_t hidden_stride, rows_stride, width;
  Divider topk, parts_per_row;
  int64_t first_row, first_part;  // of what follows: rows, or tokens
  uint32_t num_parts;             // of all rows
  int log_team;
};

// A lane's accesses to a part of a row.
template <typename T>
struct Part {
  T values[kCopies];
  int64_t first, width;
  int team;

  __device__ void load(const T* row) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (first + i * team < width) values[i] = row[first + i * team];
    }
  }
  template <typename Op>
  __device__ void store(T* row, const Op& op, float weight) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (first + i * team < width) row[first + i * team] = op(values[i], weight);
    }
  }
};

// Calls f(row, part) for each part of this team.
template <typename T, typename F>
__device__ inline void each_part(const Copies& c, const F& f) {
  const uint32_t teams = kThreads >> c.log_team;
  const int team = 1 << c.log_team, lane = threadIdx.x & (team - 1);
  for (uint32_t unit = blockIdx.x * teams + (threadIdx.x >> c.log_team); unit < c.num_parts;
       unit += gridDim.x * teams) {
    uint32_t part;
    const int64_t row = c.first_row + c.parts_per_row.divide(unit, part);
    const int64_t first = (c.first_part + part) * (kCopies << c.log_team) + lane;
    Part<T> copied{{}, first, c.width, team};
    f(row, copied);
  }
}

template <typename T, typename Op>
__global__ void __launch_bounds__(kThreads) permute_rows_kernel(Copies c, Op op) {
  const Permute& p = c.p;
  each_part<T>(c, [&](int64_t row, Part<T>& part) {
    const int64_t slot = p.slot_of[row * p.slot_stride];
    if (slot < 0 || slot >= p.num_slots) return;
    uint32_t j;
    const int64_t token = c.topk.divide(static_cast<uint32_t>(slot), j);
    const float weight = weight_of_slot(p.weights, token, j);
    part.load(static_cast<const T*>(p.hidden.data) + token * c.hidden_stride);
    part.store(static_cast<T*>(p.rows.data) + row * c.rows_stride, op, weight);
  });
}

// Where the rows of slots are known: a token is read once, not once for each of its experts, for
// which it would not stay in the second cache beside all that is written.
template <typename T, typename Op>
__global__ void __launch_bounds__(kThreads) permute_tokens_kernel(Copies c, Op op) {
  const Permute& p = c.p;
  each_part<T>(c, [&](int64_t token, Part<T>& part) {
    part.load(static_cast<const T*>(p.hidden.data) + token * c.hidden_stride);
    for (int64_t first = 0; first < p.topk; first += kSlots) {
      int32_t rows[kSlots];
      float weights[kSlots];
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        const int64_t j = first + i;
        rows[i] = j < p.topk ? p.row_of_slot[token * p.topk + j] : -1;
        weights[i] = j < p.topk ? weight_of_slot(p.weights, token, j) : 1.0f;
      }
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        if (rows[i] < 0 || rows[i] >= p.num_rows) continue;
        part.store(static_cast<T*>(p.rows.data) + rows[i] * c.rows_stride, op, weights[i]);
      }
    }
  });
}

template <typename T, typename Op>
void launch_permute(const Permute& p, const Op& op, const Launch& launch) {
  const int64_t size = size_of(p.hidden.type), access = sizeof(T);
  const int64_t width = p.cols * size / access;
  const int log_team = std::min(log_above(blocks_of(width, kCopies)), 5);
  const bool by_token = p.row_of_slot != nullptr;
  const int64_t num_rows = by_token ? p.num_slots / p.topk : p.num_rows;
  for_launches(num_rows, blocks_of(width, kCopies << log_team),
               [&](int64_t row, int64_t rows, int64_t part, int64_t num_parts) {
                 const Copies copies{p,
                                     p.hidden.row_stride * size / access,
                                     p.rows.row_stride * size / access,
                                     width,
                                     Divider(p.topk),
                                     Divider(num_parts),
                                     row,
                                     part,
                                     static_cast<uint32_t>(rows * num_parts),
                                     log_team};
                 const int64_t blocks = blocks_of(copies.num_parts, kThreads >> log_team);
                 auto* kernel =
                     by_token ? permute_tokens_kernel<T, Op> : permute_rows_kernel<T, Op>;
                 launch_kernel("moe_permute", kernel, {grid_of(blocks, kThreads, launch), kThreads},
                               launch, copies, op);
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
