// Entry points of the GEMM family: tensors to plain structs, one call. Arguments were checked in
// Python (mate_plugin/kernels); every operand is a logical NT view, strides are honoured.
#include <algorithm>
#include <vector>

#include "api/entry.h"
#include "api/groups.h"
#include "api/operands.h"

namespace mate::api {
namespace {

void run(GroupedGemm& p, const std::vector<Group>& groups, int64_t num_threads) {
  p.groups = groups.data();
  p.num_groups = static_cast<int64_t>(groups.size());
  p.num_threads = static_cast<int>(num_threads);
  require_packed(p);
  kernels().grouped_gemm(p);
}

void ragged_m_gemm(TensorView a, OptionalTensor sa, TensorView b, OptionalTensor sb,
                   TensorView info, TensorView out, int64_t a_tag, int64_t b_tag, int64_t gemm_mode,
                   int64_t gran_n, int64_t gran_k, int64_t alignment_m, int64_t out_tag,
                   int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("ragged_m_gemm");
  RaggedGroups ragged(static_cast<GemmMode>(gemm_mode), data<const int32_t>(info), info.stride(0),
                      b.size(0), a.size(0), a.size(1), alignment_m);
  GroupedGemm p = problem(operand(a, a_tag), weights(b, b_tag, 3), scales(sa, 1, gran_k),
                          scales(sb, gran_n, gran_k), weight_rows(b, 3));
  p.out = output(out, out_tag);
  run(p, ragged.groups, num_threads);
}

void masked_gemm(TensorView a, OptionalTensor sa, TensorView b, OptionalTensor sb,
                 TensorView counts, TensorView out, OptionalTensor signal, int64_t a_tag,
                 int64_t b_tag, int64_t gran_n, int64_t gran_k, int64_t out_tag,
                 int64_t /*expect_tokens*/, int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("masked_gemm");
  std::vector<Group> groups;
  for (int64_t e = 0; e < b.size(0); ++e) {
    int64_t count = std::min<int64_t>(data<const int32_t>(counts)[e * counts.stride(0)], a.size(1));
    if (count > 0) groups.push_back({e, 0, count, nullptr, e, 0, a.size(2), 0});
  }
  GroupedGemm p = problem(operand(a, a_tag), weights(b, b_tag, 3), scales(sa, 1, gran_k),
                          scales(sb, gran_n, gran_k), weight_rows(b, 3));
  p.out = output(out, out_tag);
  p.signal = {data<int32_t>(signal), ceil_div(a.size(1), kBlockM)};
  run(p, groups, num_threads);
}

void ragged_k_gemm(TensorView a, OptionalTensor sa, TensorView b, OptionalTensor sb,
                   TensorView counts, TensorView out, int64_t a_tag, int64_t b_tag, int64_t out_tag,
                   int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("ragged_k_gemm");
  std::vector<Group> groups;
  int64_t k_first = 0, k_block_first = 0;
  int64_t scale_blocks = sa.has_value() ? (*sa).size(0) : ceil_div(a.size(0), 128) + out.size(0);
  for (int64_t e = 0; e < out.size(0); ++e) {
    int64_t wanted = data<const int32_t>(counts)[e * counts.stride(0)];
    int64_t k = std::min(std::max<int64_t>(wanted, 0), a.size(0) - k_first);
    k = std::min(k, (scale_blocks - k_block_first) * 128);
    if (k > 0) groups.push_back({0, 0, out.size(1), nullptr, e, k_first, k, k_block_first});
    k_first += k;
    k_block_first += ceil_div(k, 128);
  }
  GroupedGemm p = problem(transposed(a, a_tag), transposed(b, b_tag), scales_by_column(sa),
                          scales_by_column(sb), out.size(2));
  p.out = output(out, out_tag);
  p.out.accumulate = true;
  run(p, groups, num_threads);
}

void batched_gemm(TensorView a, OptionalTensor sa, TensorView b, OptionalTensor sb, TensorView out,
                  OptionalTensor c, OptionalTensor divisor, OptionalTensor out_scale, int64_t a_tag,
                  int64_t b_tag, int64_t c_tag, int64_t gran_n, int64_t gran_k, int64_t out_tag,
                  int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("batched_gemm");
  // One product of matrices, or a batch of them.
  const int d = a.ndim() - 2;
  std::vector<Group> groups;
  for (int64_t e = 0; e < (d > 0 ? a.size(0) : 1); ++e) {
    groups.push_back({e, 0, a.size(d), nullptr, e, 0, a.size(d + 1), 0});
  }
  GroupedGemm p = problem(operand(a, a_tag), weights(b, b_tag, a.ndim()), scales(sa, 1, gran_k),
                          scales(sb, gran_n, gran_k), weight_rows(b, a.ndim()));
  p.out = output(out, out_tag);
  if (c.has_value()) p.out.c = operand(*c, c_tag);
  p.out.divisor = data<const float>(divisor);
  p.out.scale = data<float>(out_scale);
  if (out_scale.has_value()) p.out.scale_stride = (*out_scale).stride(0);
  run(p, groups, num_threads);
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(ragged_m_gemm, ragged_m_gemm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(masked_gemm, masked_gemm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(ragged_k_gemm, ragged_k_gemm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(batched_gemm, batched_gemm);

}  // namespace
}  // namespace mate::api
