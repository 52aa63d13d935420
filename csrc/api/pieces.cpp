// Entry points of the pieces around the GEMMs of a layer: tensors to plain structs, one call.
// Arguments were checked in Python (mate_plugin/kernels/quant.py, moe.py).
#include <algorithm>
#include <vector>

#include "api/choices.h"
#include "api/entry.h"
#include "api/operands.h"
#include "cpu/route.h"
#include "piece_params.h"

namespace mate::api {
namespace {

void silu_and_mul(TensorView x, TensorView out, double limit, int64_t tag, int64_t num_threads,
                  int64_t /*stream*/) {
  MATE_COUNT_CALL("silu_and_mul");
  kernels().silu_and_mul({swiglu(x, tag, limit, false), matrix(out, tag), out.size(0), out.size(1),
                          static_cast<int>(num_threads)});
}

void quantise(const Matrix& x, TensorView q, TensorView scale, Quantise p, int64_t group,
              bool ue8m0, int64_t q_tag, int64_t num_threads) {
  p.in.x = x;
  set_quantised(p, q, scale, group, ue8m0, q_tag);
  p.num_threads = static_cast<int>(num_threads);
  kernels().quantise(p);
}

void group_quant_fp8(TensorView x, TensorView q, TensorView scale, int64_t group, bool ue8m0,
                     int64_t tag, int64_t q_tag, int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("group_quant_fp8");
  quantise(matrix(x, tag), q, scale, {}, group, ue8m0, q_tag, num_threads);
}

void silu_and_mul_quant_fp8(TensorView x, TensorView q, TensorView scale, int64_t group, bool ue8m0,
                            double limit, bool rounded, int64_t tag, int64_t q_tag,
                            int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("silu_and_mul_quant_fp8");
  Quantise p{};
  p.in = swiglu(x, tag, limit, rounded);
  p.gated = true;
  quantise(p.in.x, q, scale, p, group, ue8m0, q_tag, num_threads);
}

void moe_route(TensorView topk_ids, OptionalTensor expert_map, TensorView slot_of,
               TensorView counts, TensorView ends, TensorView expert_of_row, TensorView row_of_slot,
               int64_t alignment, int64_t capacity, int64_t /*num_threads*/, int64_t /*stream*/) {
  MATE_COUNT_CALL("moe_route");
  const int64_t full = cpu::route(
      expert_choices(topk_ids, expert_map),
      sorted_layout(slot_of, counts, ends, expert_of_row, row_of_slot, alignment, capacity));
  if (full >= 0) {
    TVM_FFI_THROW(ValueError) << "capacity: expected room for every row of each expert, got "
                              << capacity << ", which expert " << full << " exceeds";
  }
}

void moe_permute(TensorView hidden, TensorView slot_of, OptionalTensor row_of_slot,
                 OptionalTensor weights, TensorView rows, int64_t topk, int64_t tag,
                 int64_t weights_tag, int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("moe_permute");
  kernels().permute({matrix(hidden, tag), matrix(rows, tag), data<const int32_t>(slot_of),
                     slot_of.stride(0), data<const int32_t>(row_of_slot),
                     slot_weights(weights, weights_tag), rows.size(0), hidden.size(0) * topk, topk,
                     rows.size(1), static_cast<int>(num_threads)});
}

void moe_unpermute(TensorView rows, TensorView slot_of, OptionalTensor row_of_slot,
                   OptionalTensor weights, TensorView out, int64_t topk, int64_t tag,
                   int64_t out_tag, int64_t weights_tag, int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("moe_unpermute");
  const int64_t num_slots = out.size(0) * topk;
  std::vector<int32_t> found;
  const auto* row_of = data<const int32_t>(row_of_slot);
  auto leaves_rows = [&](int32_t row) { return row >= rows.size(0); };
  if (row_of == nullptr || std::any_of(row_of, row_of + num_slots, leaves_rows)) {
    found = cpu::rows_of_slots(data<const int32_t>(slot_of), slot_of.stride(0), slot_of.size(0),
                               num_slots);
    row_of = found.data();
  }
  kernels().unpermute({matrix(rows, tag), matrix(out, out_tag), row_of,
                       slot_weights(weights, weights_tag), out.size(0), topk, out.size(1),
                       static_cast<int>(num_threads)});
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(silu_and_mul, silu_and_mul);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(group_quant_fp8, group_quant_fp8);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(silu_and_mul_quant_fp8, silu_and_mul_quant_fp8);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(moe_route, moe_route);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(moe_permute, moe_permute);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(moe_unpermute, moe_unpermute);

}  // namespace
}  // namespace mate::api
