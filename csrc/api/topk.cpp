// Entry point of the selection of the largest values: tensors to plain structs, one call. Arguments
// were checked in Python (mate_plugin/kernels/topk.py); ranges are cut to the columns there are.
#include <algorithm>
#include <vector>

#include "api/entry.h"
#include "topk_params.h"

namespace mate::api {
namespace {

void top_k(TensorView logits, TensorView lengths, Optional<TensorView> starts, TensorView out,
           int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("top_k");
  const int64_t columns = logits.size(1);
  std::vector<TopKRow> rows;
  rows.reserve(logits.size(0));
  for (int64_t r = 0; r < logits.size(0); ++r) {
    int64_t first = starts.has_value() ? data<int32_t>(*starts)[r * (*starts).stride(0)] : 0;
    first = std::min(std::max<int64_t>(first, 0), columns);
    int64_t end = data<int32_t>(lengths)[r * lengths.stride(0)];
    end = std::min(std::max(end, first), columns);
    rows.push_back({data<float>(logits) + r * logits.stride(0) + first, 0, end - first, 0,
                    data<int32_t>(out) + r * out.stride(0)});
  }
  kernels().top_k({rows.data(), static_cast<int64_t>(rows.size()), out.size(1), false,
                   static_cast<int>(num_threads)});
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(top_k, top_k);

}  // namespace
}  // namespace mate::api
