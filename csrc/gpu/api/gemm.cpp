// Entry points of the GEMM family on a GPU: those of api/gemm.cpp, with tensors in device memory.
// Arguments were checked in Python; contents of index tensors are for the kernels to cut.
#include "gpu/gemm.h"

#include <tvm/ffi/container/array.h>

#include "api/operands.h"
#include "gpu/entry.h"

namespace mate::gpu {
namespace {

using api::dtype;
using api::operand;
using api::output;
using api::scales;
using api::scales_by_column;
using api::transposed;

// Values of gemm_mode, as api::GemmMode has them.
RowMode ragged_mode(int64_t gemm_mode) {
  constexpr RowMode kModes[] = {RowMode::kPerToken, RowMode::kPsum, RowMode::kPerExpert};
  return kModes[gemm_mode];
}

// B as rows; packed weights have another rank.
Operand rows_of_b(const TensorView& b, int64_t tag, int rank) {
  if (b.ndim() != rank) {
    TVM_FFI_THROW(ValueError) << "packed weights: there are no GPU kernels for them";
  }
  return operand(b, tag);
}

Rows rows(RowMode mode, const TensorView& info, int64_t num_groups, int64_t count,
          int64_t alignment = 1) {
  return {mode, data<const int32_t>(info), info.stride(0), num_groups, count, alignment};
}

void run(const Gemm& p, const Launch& launch) {
  if (takes_sm90a(launch, sm90a_gemm_unfit(p))) {
    sm90a_gemm(p, launch);
  } else {
    portable_gemm(p, launch);
  }
}

SignalUnits signal_units(const Gemm& p, const Launch& launch) {
  if (takes_sm90a(launch, sm90a_gemm_unfit(p))) return sm90a_signal_units(p, launch);
  return {kPortableBlockM, kPortableBlockN};
}

// A product with a weight for each expert; the rows are still to be told.
Gemm experts(const TensorView& a, const OptionalTensor& sa, const TensorView& b,
             const OptionalTensor& sb, const TensorView& out, int64_t a_tag, int64_t b_tag,
             int64_t gran_n, int64_t gran_k, int64_t out_tag) {
  Gemm p{};
  p.a = operand(a, a_tag);
  p.b = rows_of_b(b, b_tag, 3);
  p.a_scale = scales(sa, 1, gran_k);
  p.b_scale = scales(sb, gran_n, gran_k);
  p.out = output(out, out_tag);
  p.n = b.size(1);
  p.k = a.size(a.ndim() - 1);
  return p;
}

void ragged_m_gemm(TensorView a, OptionalTensor sa, TensorView b, OptionalTensor sb,
                   TensorView info, TensorView out, int64_t a_tag, int64_t b_tag, int64_t gemm_mode,
                   int64_t gran_n, int64_t gran_k, int64_t alignment_m, int64_t out_tag,
                   int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("ragged_m_gemm");
  Gemm p = experts(a, sa, b, sb, out, a_tag, b_tag, gran_n, gran_k, out_tag);
  p.rows = rows(ragged_mode(gemm_mode), info, b.size(0), a.size(0), alignment_m);
  const Call call(a, num_mp, stream);
  run(p, call.launch());
}

Gemm masked(const TensorView& a, const OptionalTensor& sa, const TensorView& b,
            const OptionalTensor& sb, const TensorView& counts, const TensorView& out,
            int64_t a_tag, int64_t b_tag, int64_t gran_n, int64_t gran_k, int64_t out_tag,
            int64_t expect_tokens) {
  Gemm p = experts(a, sa, b, sb, out, a_tag, b_tag, gran_n, gran_k, out_tag);
  p.rows = rows(RowMode::kMasked, counts, b.size(0), a.size(1));
  p.rows.expected = expect_tokens;
  return p;
}

void masked_gemm(TensorView a, OptionalTensor sa, TensorView b, OptionalTensor sb,
                 TensorView counts, TensorView out, OptionalTensor signal, int64_t a_tag,
                 int64_t b_tag, int64_t gran_n, int64_t gran_k, int64_t out_tag,
                 int64_t expect_tokens, int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("masked_gemm");
  Gemm p = masked(a, sa, b, sb, counts, out, a_tag, b_tag, gran_n, gran_k, out_tag, expect_tokens);
  const Call call(a, num_mp, stream);
  if (signal.has_value()) {
    const SignalUnits units = signal_units(p, call.launch());
    p.signal = {data<int32_t>(signal), ceil_div(a.size(1), units.m)};
  }
  run(p, call.launch());
}

// Rows and columns of a block in which masked_gemm counts the signal where it gets these arguments.
tvm::ffi::Array<int64_t> masked_signal_units(TensorView a, OptionalTensor sa, TensorView b,
                                             OptionalTensor sb, TensorView counts, TensorView out,
                                             OptionalTensor /*signal*/, int64_t a_tag,
                                             int64_t b_tag, int64_t gran_n, int64_t gran_k,
                                             int64_t out_tag, int64_t expect_tokens, int64_t num_mp,
                                             int64_t stream) {
  const Gemm p =
      masked(a, sa, b, sb, counts, out, a_tag, b_tag, gran_n, gran_k, out_tag, expect_tokens);
  const Call call(a, num_mp, stream);
  const SignalUnits units = signal_units(p, call.launch());
  return {units.m, units.n};
}

void ragged_k_gemm(TensorView a, OptionalTensor sa, TensorView b, OptionalTensor sb,
                   TensorView counts, TensorView out, int64_t a_tag, int64_t b_tag, int64_t out_tag,
                   int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("ragged_k_gemm");
  constexpr int64_t kBlock = 128;
  Gemm p{};
  p.a = transposed(a, a_tag);
  p.b = transposed(b, b_tag);
  p.a_scale = scales_by_column(sa);
  p.b_scale = scales_by_column(sb);
  p.out = output(out, out_tag);
  p.out.accumulate = true;
  p.rows = rows(RowMode::kRaggedK, counts, out.size(0), out.size(1));
  p.n = out.size(2);
  p.k = a.size(0);
  p.scale_blocks = sa.has_value() ? (*sa).size(0) : ceil_div(p.k, kBlock) + out.size(0);
  const Call call(a, num_mp, stream);
  run(p, call.launch());
}

void batched_gemm(TensorView a, OptionalTensor sa, TensorView b, OptionalTensor sb, TensorView out,
                  OptionalTensor c, OptionalTensor divisor, OptionalTensor out_scale, int64_t a_tag,
                  int64_t b_tag, int64_t c_tag, int64_t gran_n, int64_t gran_k, int64_t out_tag,
                  int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("batched_gemm");
  // One product of matrices, or a batch of them.
  const int d = a.ndim() - 2;
  Gemm p{};
  p.a = operand(a, a_tag);
  p.b = rows_of_b(b, b_tag, a.ndim());
  p.a_scale = scales(sa, 1, gran_k);
  p.b_scale = scales(sb, gran_n, gran_k);
  p.out = output(out, out_tag);
  if (c.has_value()) p.out.c = operand(*c, c_tag);
  p.out.divisor = data<const float>(divisor);
  p.out.scale = data<float>(out_scale);
  if (out_scale.has_value()) p.out.scale_stride = (*out_scale).stride(0);
  p.rows = {RowMode::kBatched, nullptr, 0, d > 0 ? a.size(0) : 1, a.size(d), 1};
  p.n = b.size(d);
  p.k = a.size(d + 1);
  const Call call(a, num_mp, stream);
  run(p, call.launch());
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(ragged_m_gemm, ragged_m_gemm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(masked_gemm, masked_gemm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(masked_signal_units, masked_signal_units);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(ragged_k_gemm, ragged_k_gemm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(batched_gemm, batched_gemm);

}  // namespace
}  // namespace mate::gpu
