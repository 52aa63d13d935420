// Entry point of the selection of the largest values on a GPU. Arguments were checked in Python
// (mate_plugin/kernels/topk.py); the kernels cut ranges to the columns there are.
#include "gpu/topk.h"

#include "gpu/entry.h"

namespace mate::gpu {
namespace {

void top_k_entry(TensorView logits, TensorView lengths, OptionalTensor starts, TensorView out,
                 int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("top_k");
  const Call call(out, num_mp, stream);
  TopKRows p{};
  p.values = data<const float>(logits);
  p.row_stride = logits.stride(0);
  p.num_rows = logits.size(0);
  p.columns = logits.size(1);
  p.lengths = data<const int32_t>(lengths);
  p.length_stride = lengths.stride(0);
  if (starts.has_value()) {
    p.starts = data<const int32_t>(starts);
    p.start_stride = (*starts).stride(0);
  }
  p.out = data<int32_t>(out);
  p.out_stride = out.stride(0);
  p.k = out.size(1);
  top_k(p, call.launch());
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(top_k, top_k_entry);

}  // namespace
}  // namespace mate::gpu
