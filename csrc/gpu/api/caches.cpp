// Entry points that write and read paged caches on a GPU. Arguments were checked in Python
// (mate_plugin/kernels/indexer_cache.py); the kernels cut slots, lengths and blocks to what exists.
#include "api/cache_views.h"
#include "gpu/cache_rows.h"
#include "gpu/entry.h"

namespace mate::gpu {
namespace {

using api::key_cache;
using api::slots_of;

void quant_and_write_k(TensorView k, TensorView cache, TensorView slots, bool ue8m0, int64_t tag,
                       int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("quant_and_write_k");
  const Call call(cache, num_mp, stream);
  quantise_keys({data<const char>(k), static_cast<DType>(tag), k.stride(0), key_cache(cache),
                 slots_of(slots), ue8m0, 0},
                call.launch());
}

void gather_k(TensorView cache, TensorView block_table, TensorView context_lens, TensorView out_k,
              TensorView out_scale, int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("gather_k");
  const Call call(out_k, num_mp, stream);
  gather_keys({key_cache(cache), data<const int32_t>(block_table), block_table.stride(0), nullptr,
               context_lens.size(0), data<char>(out_k), data<float>(out_scale), out_k.stride(0),
               out_scale.stride(0), out_k.size(0), 0},
              {data<const int32_t>(context_lens), context_lens.stride(0),
               block_table.size(1) * cache.size(1)},
              call.launch());
}

void write_latents(TensorView latent, TensorView rope, TensorView cache, TensorView slots,
                   int64_t tag, int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("write_latents");
  const Call call(cache, num_mp, stream);
  const int64_t size = size_of(static_cast<DType>(tag));
  auto part = [&](const TensorView& x) {
    return WriteRows::Part{data<const char>(x), x.size(1) * size, x.stride(0) * size};
  };
  write_rows({{part(latent), part(rope)},
              data<char>(cache),
              cache.size(0),
              cache.size(1),
              cache.stride(0) * size,
              cache.stride(1) * size,
              slots_of(slots),
              0},
             call.launch());
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(quant_and_write_k, quant_and_write_k);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(gather_k, gather_k);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(write_latents, write_latents);

}  // namespace
}  // namespace mate::gpu
