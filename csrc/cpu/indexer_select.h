// Scores and selection in one, for a ragged batch and through a buffer of limited size.
#pragma once

#include "cpu/isa.h"
#include "indexer_params.h"

namespace mate::cpu {

// A query row sees tokens [0, seen) of its sequence.
struct SeeingRow {
  int64_t sequence, seen;
};

struct IndexerTopK {
  IndexerScores scores;   // queries, weights and keys; rows are numbered through all sequences
  const SeeingRow* rows;  // [num_rows]
  int64_t num_rows;
  int32_t* out;  // [num_rows, k]
  int64_t out_stride, k;
  int64_t budget;  // bytes of logits; room for k of them and for kKeyGroup more at least
};

// out = tokens of the k largest logits of each row, ascending, then -1.
void index_topk(const Kernels& kernels, const IndexerTopK& p);

}  // namespace mate::cpu
