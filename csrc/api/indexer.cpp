// Entry points of the lightning indexer: tensors to plain structs, one call. Arguments were checked
// in Python (mate_plugin/kernels/mqa_logits.py). Contents of index tensors are cut to what exists
// and never followed outside.
#include "api/indexer.h"

#include <algorithm>
#include <vector>

#include "cpu/indexer_schedule.h"

namespace mate::api {
namespace {

int32_t at(const TensorView& x, int64_t i) { return data<const int32_t>(x)[i * x.stride(0)]; }

int32_t at(const TensorView& x, int64_t i, int64_t j) {
  return data<const int32_t>(x)[i * x.stride(0) + j * x.stride(1)];
}

// Tokens visible to draft token j of request b.
int64_t visible(const TensorView& context_lens, int64_t b, int64_t j, int64_t next_n) {
  if (context_lens.ndim() == 2) return at(context_lens, b, j);
  return static_cast<int64_t>(at(context_lens, b)) - next_n + j + 1;
}

IndexerScores problem(const TensorView& q, int64_t q_tag, const TensorView& weights,
                      const TensorView& out, bool clean, double clean_value, int64_t num_threads) {
  IndexerScores p = score_problem(q, q_tag, weights, num_threads);
  p.out = data<float>(out);
  p.out_stride = out.stride(0);
  p.columns = out.size(1);
  p.clean = clean;
  p.clean_value = static_cast<float>(clean_value);
  return p;
}

void run(const IndexerScores& p, const std::vector<TokenRange>& ranges) {
  std::vector<cpu::RowRun> runs;
  runs.reserve(p.batch);
  for (int64_t s = 0; s < p.batch; ++s) runs.push_back({s, 0, p.rows});
  cpu::run_scores(kernels(), p, ranges, runs);
}

void paged_mqa_metadata(TensorView context_lens, TensorView out, int64_t block_kv,
                        int64_t /*num_threads*/, int64_t /*stream*/) {
  MATE_COUNT_CALL("paged_mqa_metadata");
  std::vector<int64_t> longest(context_lens.size(0), 0);
  for (int64_t b = 0; b < context_lens.size(0); ++b) {
    if (context_lens.ndim() == 1) {
      longest[b] = at(context_lens, b);
      continue;
    }
    for (int64_t j = 0; j < context_lens.size(1); ++j) {
      longest[b] = std::max<int64_t>(longest[b], at(context_lens, b, j));
    }
  }
  cpu::split_segments(longest.data(), context_lens.size(0), 4 * block_kv, out.size(0) - 1,
                      data<int32_t>(out), out.stride(0));
}

void paged_mqa_logits(TensorView q, TensorView cache, TensorView weights, TensorView context_lens,
                      TensorView block_table, TensorView out, int64_t q_tag, bool clean,
                      double clean_value, int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("paged_mqa_logits");
  IndexerScores p = problem(q, q_tag, weights, out, clean, clean_value, num_threads);
  p.keys = paged_keys(cache, block_table, p.depth);
  const int64_t most = std::min(p.columns, block_table.size(1) * p.keys.block_size);
  std::vector<TokenRange> ranges;
  ranges.reserve(p.batch * p.rows);
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t j = 0; j < p.rows; ++j) {
      int64_t length = visible(context_lens, b, j, p.rows);
      ranges.push_back({0, std::min(std::max<int64_t>(length, 0), most), 0});
    }
  }
  run(p, ranges);
}

void mqa_logits(TensorView q, TensorView k, TensorView k_scale, TensorView weights,
                TensorView first, TensorView end, TensorView out, int64_t q_tag, int64_t k_tag,
                bool compressed, bool clean, double clean_value, int64_t num_threads,
                int64_t /*stream*/) {
  MATE_COUNT_CALL("mqa_logits");
  IndexerScores p = problem(q, q_tag, weights, out, clean, clean_value, num_threads);
  const int64_t tokens = k.size(0);
  p.keys.codes = data<const char>(k);
  p.keys.type = static_cast<DType>(k_tag);
  p.keys.row_stride = k.stride(0);
  p.keys.scales = data<const char>(k_scale);
  p.keys.scale_stride = k_scale.stride(0);
  p.keys.block_size = tokens;
  std::vector<TokenRange> ranges;
  ranges.reserve(p.rows);
  for (int64_t i = 0; i < p.rows; ++i) {
    const int64_t from = at(first, i), shift = compressed ? from : 0;
    const int64_t to = std::min({static_cast<int64_t>(at(end, i)), tokens, shift + p.columns});
    ranges.push_back({std::max<int64_t>(from, 0), to, shift});
  }
  run(p, ranges);
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(paged_mqa_metadata, paged_mqa_metadata);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(paged_mqa_logits, paged_mqa_logits);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(mqa_logits, mqa_logits);

}  // namespace

IndexerScores score_problem(const TensorView& q, int64_t q_tag, const TensorView& weights,
                            int64_t num_threads) {
  IndexerScores p{};
  const int d = q.ndim() - 3;
  p.q = data<const char>(q);
  p.q_type = static_cast<DType>(q_tag);
  p.q_stride[0] = d > 0 ? q.stride(0) : 0;  // one byte an element
  p.q_stride[1] = q.stride(d);
  p.q_stride[2] = q.stride(d + 1);
  p.batch = d > 0 ? q.size(0) : 1;
  p.rows = q.size(d);
  p.heads = q.size(d + 1);
  p.depth = q.size(d + 2);
  p.weights = data<const float>(weights);
  p.weight_stride[0] = weights.stride(0);
  p.weight_stride[1] = weights.stride(1);
  p.num_threads = static_cast<int>(num_threads);
  return p;
}

Keys paged_keys(const TensorView& cache, const TensorView& block_table, int64_t depth) {
  Keys k{};
  k.codes = data<const char>(cache);
  k.type = DType::kE4M3;
  k.block_size = cache.size(1);
  k.row_stride = depth;
  k.scales = k.codes + k.block_size * depth;
  k.scale_stride = 1;
  k.num_blocks = cache.size(0);
  k.block_stride = cache.stride(0);
  k.block_table = data<const int32_t>(block_table);
  k.table_stride = block_table.stride(0);
  return k;
}

}  // namespace mate::api
