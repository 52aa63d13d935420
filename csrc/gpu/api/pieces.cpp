// Entry points of the pieces around the GEMMs of a layer on a GPU. Arguments were checked in Python
// (mate_plugin/kernels/quant.py, moe.py).
#include "api/choices.h"
#include "api/operands.h"
#include "gpu/entry.h"
#include "gpu/moe.h"
#include "gpu/quant.h"

namespace mate::gpu {
namespace {

using api::matrix;
using api::set_quantised;
using api::swiglu;

void silu_and_mul_entry(TensorView x, TensorView out, double limit, int64_t tag, int64_t num_mp,
                        int64_t stream) {
  MATE_COUNT_CALL("silu_and_mul");
  const Call call(out, num_mp, stream);
  silu_and_mul({swiglu(x, tag, limit, false), matrix(out, tag), out.size(0), out.size(1), 0},
               call.launch());
}

void quantise_rows(Quantise p, const TensorView& q, const TensorView& scale, int64_t group,
                   bool ue8m0, int64_t q_tag, int64_t num_mp, int64_t stream) {
  const Call call(q, num_mp, stream);
  set_quantised(p, q, scale, group, ue8m0, q_tag);
  quantise(p, call.launch());
}

void group_quant_fp8(TensorView x, TensorView q, TensorView scale, int64_t group, bool ue8m0,
                     int64_t tag, int64_t q_tag, int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("group_quant_fp8");
  Quantise p{};
  p.in.x = matrix(x, tag);
  quantise_rows(p, q, scale, group, ue8m0, q_tag, num_mp, stream);
}

void silu_and_mul_quant_fp8(TensorView x, TensorView q, TensorView scale, int64_t group, bool ue8m0,
                            double limit, bool rounded, int64_t tag, int64_t q_tag, int64_t num_mp,
                            int64_t stream) {
  MATE_COUNT_CALL("silu_and_mul_quant_fp8");
  Quantise p{};
  p.in = swiglu(x, tag, limit, rounded);
  p.gated = true;
  quantise_rows(p, q, scale, group, ue8m0, q_tag, num_mp, stream);
}

// Where a CPU refuses an expert with more rows than `capacity`, its last ones are left out here and
// its count is cut: the host cannot know.
void moe_route(TensorView topk_ids, OptionalTensor expert_map, TensorView slot_of,
               TensorView counts, TensorView ends, TensorView expert_of_row, TensorView row_of_slot,
               int64_t alignment, int64_t capacity, int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("moe_route");
  const Call call(slot_of, num_mp, stream);
  route(api::expert_choices(topk_ids, expert_map),
        api::sorted_layout(slot_of, counts, ends, expert_of_row, row_of_slot, alignment, capacity),
        call.launch());
}

void moe_permute(TensorView hidden, TensorView slot_of, OptionalTensor row_of_slot,
                 OptionalTensor weights, TensorView rows, int64_t topk, int64_t tag,
                 int64_t weights_tag, int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("moe_permute");
  const Call call(rows, num_mp, stream);
  permute({matrix(hidden, tag), matrix(rows, tag), data<const int32_t>(slot_of), slot_of.stride(0),
           data<const int32_t>(row_of_slot), api::slot_weights(weights, weights_tag), rows.size(0),
           hidden.size(0) * topk, topk, rows.size(1), 0},
          call.launch());
}

void moe_unpermute(TensorView rows, TensorView slot_of, OptionalTensor row_of_slot,
                   OptionalTensor weights, TensorView out, int64_t topk, int64_t tag,
                   int64_t out_tag, int64_t weights_tag, int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("moe_unpermute");
  const Call call(out, num_mp, stream);
  unpermute({matrix(rows, tag), matrix(out, out_tag), data<const int32_t>(row_of_slot),
             api::slot_weights(weights, weights_tag), out.size(0), topk, out.size(1), 0},
            {data<const int32_t>(slot_of), slot_of.stride(0), slot_of.size(0)}, call.launch());
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(silu_and_mul, silu_and_mul_entry);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(group_quant_fp8, group_quant_fp8);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(silu_and_mul_quant_fp8, silu_and_mul_quant_fp8);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(moe_route, moe_route);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(moe_permute, moe_permute);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(moe_unpermute, moe_unpermute);

}  // namespace
}  // namespace mate::gpu
