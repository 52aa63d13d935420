// Entry point of attention over selected rows of a latent cache: tensors to plain structs, one
// call. Arguments were checked in Python (mate_plugin/kernels/sparse_mla.py). Contents of index
// tensors are never followed outside of what exists.
#include <vector>

#include "api/entry.h"
#include "cpu/mla_schedule.h"
#include "mla_params.h"

namespace mate::api {
namespace {

void sparse_mla(TensorView q, TensorView kv_cache, OptionalTensor indices, OptionalTensor lengths,
                TensorView block_table, TensorView request_of_token, TensorView out, double scale,
                int64_t q_tag, int64_t kv_tag, int64_t out_tag, int64_t num_threads,
                int64_t /*stream*/) {
  MATE_COUNT_CALL("sparse_mla");
  SparseMla p{};
  p.q = data<const char>(q);
  p.q_type = static_cast<DType>(q_tag);
  p.q_stride[0] = q.stride(0);
  p.q_stride[1] = q.stride(1);
  p.kv.data = data<const char>(kv_cache);
  p.kv.type = static_cast<DType>(kv_tag);
  p.kv.num_blocks = kv_cache.size(0);
  p.kv.block_size = kv_cache.size(1);
  p.kv.block_stride = kv_cache.stride(0);
  p.kv.row_stride = kv_cache.stride(1);
  p.kv.block_table = data<const int32_t>(block_table);
  p.kv.num_requests = block_table.size(0);
  p.kv.table_width = block_table.size(1);
  p.kv.table_stride = block_table.stride(0);
  p.request_of = data<const int32_t>(request_of_token);
  p.request_stride = request_of_token.stride(0);
  if (indices.has_value()) {
    p.indices = data<const int32_t>(indices);
    p.num_indices = (*indices).size(1);
    p.index_stride = (*indices).stride(0);
  } else {
    p.lengths = data<const int32_t>(lengths);
    p.length_stride = (*lengths).stride(0);
  }
  p.out = data<char>(out);
  p.out_type = static_cast<DType>(out_tag);
  p.out_stride[0] = out.stride(0);
  p.out_stride[1] = out.stride(1);
  p.tokens = q.size(0);
  p.heads = q.size(1);
  p.depth = q.size(2);
  p.value_dim = out.size(2);
  p.scale = static_cast<float>(scale);
  p.num_threads = static_cast<int>(num_threads);
  const std::vector<MlaUnit> units = cpu::mla_units(p);
  p.units = units.data();
  p.num_units = static_cast<int64_t>(units.size());
  kernels().sparse_mla(p);
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(sparse_mla, sparse_mla);

}  // namespace
}  // namespace mate::api
