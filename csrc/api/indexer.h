// What the indexer's entry points share: its tensors as plain structs.
#pragma once

#include "api/entry.h"
#include "indexer_params.h"

namespace mate::api {

// Queries [batch, rows, heads, depth] or [rows, heads, depth] and their weights; the rest is unset.
IndexerScores score_problem(const TensorView& q, int64_t q_tag, const TensorView& weights,
                            int64_t num_threads);

// A cache [num_blocks, block, ..., depth + 4].
Keys paged_keys(const TensorView& cache, const TensorView& block_table, int64_t depth);

}  // namespace mate::api
