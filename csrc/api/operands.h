// Tensors as the structs that kernels take.
#pragma once

#include <climits>
#include <limits>

#include "api/tensors.h"
#include "params.h"
#include "piece_params.h"

namespace mate::api {

inline DType dtype(int64_t tag) { return static_cast<DType>(tag); }

// [rows, k] shared by all groups, or [groups, rows, k].
inline Operand operand(const TensorView& x, int64_t tag) {
  int d = x.ndim() - 2;
  return {data<const void>(x), dtype(tag), d > 0 ? x.stride(0) : 0, x.stride(d), x.stride(d + 1)};
}

// B as rows, or packed: [rows / kPackedRows, k / q, kPackedRows, q], q elements to 4 bytes, with
// `rank` dimensions if it were rows.
inline Operand weights(const TensorView& x, int64_t tag, int rank) {
  if (x.ndim() == rank) return operand(x, tag);
  const int64_t k = x.size(rank - 1) * x.size(rank + 1);
  return {data<const void>(x), dtype(tag), rank > 2 ? x.stride(0) : 0, k, 1, true};
}

inline int64_t weight_rows(const TensorView& x, int rank) {
  return x.size(rank - 2) * (x.ndim() == rank ? 1 : kPackedRows);
}

// [rows or row blocks, k blocks] with or without a group dimension, or one element of any rank; a
// granularity of 0 means the whole dimension.
inline Scales scales(const OptionalTensor& s, int64_t row_block, int64_t k_block) {
  auto blocks = [](int64_t block) { return block > 0 ? block : INT64_MAX; };
  if (!s.has_value()) return {nullptr, 0, 0, 0, 1, blocks(k_block)};
  const TensorView x = *s;
  int d = x.ndim() - 2;
  if (d < 0) return {data<const float>(x), 0, 0, 0, blocks(row_block), blocks(k_block)};
  return {data<const float>(x), d > 0 ? step(x, 0) : 0, step(x, d),
          step(x, d + 1),       blocks(row_block),      blocks(k_block)};
}

// A product without groups, output and threads.
inline GroupedGemm problem(const Operand& a, const Operand& b, const Scales& a_scale,
                           const Scales& b_scale, int64_t n) {
  GroupedGemm p{};
  p.a = a;
  p.b = b;
  p.a_scale = a_scale;
  p.b_scale = b_scale;
  p.n = n;
  return p;
}

inline Matrix matrix(const TensorView& x, int64_t tag) {
  return {data<void>(x), static_cast<DType>(tag), x.stride(0)};
}

inline SlotWeights slot_weights(const OptionalTensor& weights, int64_t tag) {
  if (!weights.has_value()) return {nullptr, DType::kF32, 0, 0};
  const TensorView w = *weights;
  return {data<const void>(w), static_cast<DType>(tag), w.stride(0), w.stride(1)};
}

// A limit below zero is none.
inline float swiglu_limit(double limit) {
  return limit < 0 ? std::numeric_limits<float>::infinity() : static_cast<float>(limit);
}

inline SwiGlu swiglu(const TensorView& x, int64_t tag, double limit, bool rounded) {
  return {matrix(x, tag), swiglu_limit(limit), rounded};
}

// What a call of quantise writes, and how.
inline void set_quantised(Quantise& p, const TensorView& q, const TensorView& scale, int64_t group,
                          bool ue8m0, int64_t q_tag) {
  p.q = matrix(q, q_tag);
  p.scale = data<float>(scale);
  p.scale_row_stride = scale.stride(0);
  p.scale_col_stride = scale.stride(1);
  p.power_of_two = ue8m0;
  p.rows = q.size(0);
  p.cols = q.size(1);
  p.group = group;
}

inline Output output(const TensorView& out, int64_t tag) {
  const int d = out.ndim() - 2;
  return {data<void>(out), dtype(tag), d > 0 ? out.stride(0) : 0, out.stride(d)};
}

// Operands and scales of a product over rows: x is [k, rows], s [blocks of 128 of k, rows].
inline Operand transposed(const TensorView& x, int64_t tag) {
  return {data<const void>(x), dtype(tag), 0, x.stride(1), x.stride(0)};
}

inline Scales scales_by_column(const OptionalTensor& s) {
  if (!s.has_value()) return {nullptr, 0, 0, 0, 1, 128};
  const TensorView x = *s;
  return {data<const float>(x), 0, x.stride(1), x.stride(0), 1, 128};
}

}  // namespace mate::api
