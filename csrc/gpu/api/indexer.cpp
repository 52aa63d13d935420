// Entry points of the lightning indexer on a GPU: those of api/indexer.cpp and
// api/indexer_topk.cpp, with tensors in device memory. Arguments were checked in Python; contents
// of index tensors are for the kernels to cut.
#include "gpu/indexer.h"

#include "gpu/entry.h"

namespace mate::gpu {
namespace {

// Queries [batch, rows, heads, depth] or [rows, heads, depth], of one byte an element.
void set_queries(Scores& p, const TensorView& q, int64_t q_tag, const TensorView& weights) {
  const int d = q.ndim() - 3;
  p.q = data<const uint8_t>(q);
  p.q_type = static_cast<DType>(q_tag);
  p.q_row_stride = q.stride(d);
  p.q_head_stride = q.stride(d + 1);
  p.heads = q.size(d + 1);
  p.depth = q.size(d + 2);
  p.weights = data<const float>(weights);
  p.weight_row_stride = weights.stride(0);
  p.weight_head_stride = weights.stride(1);
}

void set_output(Scores& p, const TensorView& out, bool clean, double clean_value) {
  p.out = data<float>(out);
  p.out_stride = out.stride(0);
  p.columns = out.size(1);
  p.clean = clean;
  p.clean_value = static_cast<float>(clean_value);
}

// A cache [num_blocks, block, ..., depth + 4].
void set_cache(PagedScores& p, const TensorView& cache, const TensorView& block_table) {
  p.cache = data<const uint8_t>(cache);
  p.num_blocks = cache.size(0);
  p.block_size = cache.size(1);
  p.block_stride = cache.stride(0);
  p.block_table = data<const int32_t>(block_table);
  p.table_stride = block_table.stride(0);
  p.table_width = block_table.size(1);
}

void score_paged(const PagedScores& p, const Launch& launch) {
  if (takes_sm90a(launch, sm90a_paged_unfit(p))) {
    sm90a_paged_scores(p, launch);
  } else {
    portable_paged_scores(p, launch);
  }
}

void paged_mqa_metadata(TensorView context_lens, TensorView out, int64_t block_kv, int64_t num_mp,
                        int64_t stream) {
  MATE_COUNT_CALL("paged_mqa_metadata");
  const bool per_row = context_lens.ndim() == 2;
  const Call call(context_lens, num_mp, stream);
  split_segments({data<const int32_t>(context_lens),
                  context_lens.size(0),
                  per_row ? context_lens.size(1) : 1,
                  {context_lens.stride(0), per_row ? context_lens.stride(1) : 0},
                  4 * block_kv,
                  out.size(0) - 1,
                  data<int32_t>(out),
                  out.stride(0)},
                 call.launch());
}

void paged_mqa_logits(TensorView q, TensorView cache, TensorView weights, TensorView context_lens,
                      TensorView block_table, TensorView out, int64_t q_tag, bool clean,
                      double clean_value, int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("paged_mqa_logits");
  PagedScores p{};
  set_queries(p, q, q_tag, weights);
  set_output(p, out, clean, clean_value);
  set_cache(p, cache, block_table);
  p.batch = q.size(0);
  p.next_n = q.size(1);
  p.q_request_stride = q.stride(0);
  p.context_lens = data<const int32_t>(context_lens);
  p.lens_per_row = context_lens.ndim() == 2;
  p.lens_request_stride = context_lens.stride(0);
  p.lens_row_stride = p.lens_per_row ? context_lens.stride(1) : 0;
  const Call call(q, num_mp, stream);
  score_paged(p, call.launch());
}

void mqa_logits(TensorView q, TensorView k, TensorView k_scale, TensorView weights,
                TensorView first, TensorView end, TensorView out, int64_t q_tag, int64_t k_tag,
                bool compressed, bool clean, double clean_value, int64_t num_mp, int64_t stream) {
  MATE_COUNT_CALL("mqa_logits");
  FlatScores p{};
  set_queries(p, q, q_tag, weights);
  set_output(p, out, clean, clean_value);
  p.rows = q.size(0);
  p.k = data<const uint8_t>(k);
  p.k_type = static_cast<DType>(k_tag);
  p.k_row_stride = k.stride(0);
  p.k_scale = data<const float>(k_scale);
  p.k_scale_stride = k_scale.stride(0);
  p.tokens = k.size(0);
  p.first = data<const int32_t>(first);
  p.end = data<const int32_t>(end);
  p.first_stride = first.stride(0);
  p.end_stride = end.stride(0);
  p.compressed = compressed;
  const Call call(q, num_mp, stream);
  if (takes_sm90a(call.launch(), sm90a_flat_unfit(p))) {
    sm90a_flat_scores(p, call.launch());
  } else {
    portable_flat_scores(p, call.launch());
  }
}

void index_topk_entry(TensorView q, TensorView cache, TensorView weights,
                      TensorView query_start_loc, TensorView context_lens, TensorView block_table,
                      TensorView out, int64_t q_tag, int64_t budget, int64_t num_mp,
                      int64_t stream) {
  MATE_COUNT_CALL("index_topk");
  IndexTopK p{};
  set_queries(p.scores, q, q_tag, weights);
  set_cache(p.scores, cache, block_table);
  p.scores.batch = q.size(0);
  p.scores.next_n = 1;
  p.scores.q_request_stride = q.stride(0);
  p.requests = context_lens.size(0);
  p.query_start_loc = data<const int32_t>(query_start_loc);
  p.context_lens = data<const int32_t>(context_lens);
  p.start_stride = query_start_loc.stride(0);
  p.lens_stride = context_lens.stride(0);
  p.out = data<int32_t>(out);
  p.out_stride = out.stride(0);
  p.k = out.size(1);
  p.budget = budget;
  const Call call(q, num_mp, stream);
  index_topk(p, score_paged, call.launch());
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(paged_mqa_metadata, paged_mqa_metadata);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(paged_mqa_logits, paged_mqa_logits);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(mqa_logits, mqa_logits);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(index_topk, index_topk_entry);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(logits_peak, logits_peak);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(reset_logits_peak, reset_logits_peak);

}  // namespace
}  // namespace mate::gpu
