// Entry points that write and read paged caches: tensors to plain structs, one call. Arguments were
// checked in Python (mate_plugin/kernels/indexer_cache.py). Slots, lengths and blocks are cut to
// what exists and never followed outside.
#include <algorithm>
#include <vector>

#include "api/cache_views.h"
#include "api/entry.h"
#include "cpu/cache_rows.h"

namespace mate::api {
namespace {

void quant_and_write_k(TensorView k, TensorView cache, TensorView slots, bool ue8m0, int64_t tag,
                       int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("quant_and_write_k");
  kernels().quantise_keys({data<const char>(k), static_cast<DType>(tag), k.stride(0),
                           key_cache(cache), slots_of(slots), ue8m0,
                           static_cast<int>(num_threads)});
}

void gather_k(TensorView cache, TensorView block_table, TensorView context_lens, TensorView out_k,
              TensorView out_scale, int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("gather_k");
  const int64_t most = block_table.size(1) * cache.size(1);
  const auto* lens = data<const int32_t>(context_lens);
  std::vector<int64_t> starts{0};
  starts.reserve(context_lens.size(0) + 1);
  for (int64_t r = 0; r < context_lens.size(0); ++r) {
    const int64_t length = lens[r * context_lens.stride(0)];
    starts.push_back(starts.back() + std::min(std::max<int64_t>(length, 0), most));
  }
  cpu::gather_keys({key_cache(cache), data<const int32_t>(block_table), block_table.stride(0),
                    starts.data(), context_lens.size(0), data<char>(out_k), data<float>(out_scale),
                    out_k.stride(0), out_scale.stride(0), out_k.size(0),
                    static_cast<int>(num_threads)});
}

void write_latents(TensorView latent, TensorView rope, TensorView cache, TensorView slots,
                   int64_t tag, int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("write_latents");
  const int64_t size = size_of(static_cast<DType>(tag));
  auto part = [&](const TensorView& x) {
    return WriteRows::Part{data<const char>(x), x.size(1) * size, x.stride(0) * size};
  };
  cpu::write_rows({{part(latent), part(rope)},
                   data<char>(cache),
                   cache.size(0),
                   cache.size(1),
                   cache.stride(0) * size,
                   cache.stride(1) * size,
                   slots_of(slots),
                   static_cast<int>(num_threads)});
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(quant_and_write_k, quant_and_write_k);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(gather_k, gather_k);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(write_latents, write_latents);

}  // namespace
}  // namespace mate::api
