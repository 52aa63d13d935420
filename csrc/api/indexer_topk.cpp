// Entry point of the fused scores and selection: tensors to plain structs, one call. Arguments were
// checked in Python (mate_plugin/kernels/index_topk.py); offsets and lengths are cut to what
// exists.
#include <algorithm>
#include <limits>
#include <vector>

#include "api/entry.h"
#include "api/indexer.h"
#include "cpu/indexer_select.h"
#include "cpu/logits_buffer.h"

namespace mate::api {
namespace {

int64_t at(const TensorView& x, int64_t i) { return data<const int32_t>(x)[i * x.stride(0)]; }

// What each row sees; rows of no request see nothing.
std::vector<cpu::SeeingRow> seeing_rows(const TensorView& query_start_loc,
                                        const TensorView& context_lens, int64_t num_rows,
                                        int64_t most) {
  std::vector<cpu::SeeingRow> rows(num_rows, {0, 0});
  int64_t first = 0;
  for (int64_t b = 0; b < context_lens.size(0); ++b) {
    first = std::min(std::max(first, at(query_start_loc, b)), num_rows);
    const int64_t end = std::min(std::max(first, at(query_start_loc, b + 1)), num_rows);
    for (int64_t r = first; r < end; ++r) {
      const int64_t seen = at(context_lens, b) - (end - r) + 1;
      rows[r] = {b, std::min(std::max<int64_t>(seen, 0), most)};
    }
    first = end;
  }
  return rows;
}

void index_topk(TensorView q, TensorView cache, TensorView weights, TensorView query_start_loc,
                TensorView context_lens, TensorView block_table, TensorView out, int64_t q_tag,
                int64_t budget, int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("index_topk");
  cpu::IndexerTopK p{};
  p.scores = score_problem(q, q_tag, weights, num_threads);
  p.scores.keys = paged_keys(cache, block_table, p.scores.depth);
  p.scores.batch = context_lens.size(0);
  p.scores.rows = 0;
  p.scores.clean_value = -std::numeric_limits<float>::infinity();
  const std::vector<cpu::SeeingRow> rows = seeing_rows(
      query_start_loc, context_lens, q.size(0), block_table.size(1) * p.scores.keys.block_size);
  p.rows = rows.data();
  p.num_rows = q.size(0);
  p.out = data<int32_t>(out);
  p.out_stride = out.stride(0);
  p.k = out.size(1);
  p.budget = budget;
  cpu::index_topk(kernels(), p);
}

int64_t logits_peak() { return cpu::logits_peak(); }

void reset_logits_peak() { cpu::reset_logits_peak(); }

TVM_FFI_DLL_EXPORT_TYPED_FUNC(index_topk, index_topk);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(logits_peak, logits_peak);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(reset_logits_peak, reset_logits_peak);

}  // namespace
}  // namespace mate::api
