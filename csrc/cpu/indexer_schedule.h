// How scores are cut into units of work, and the published split of a paged batch over processors.
#pragma once

#include <vector>

#include "cpu/isa.h"
#include "indexer_params.h"

namespace mate::cpu {

// Query rows [first, first + count) of one sequence.
struct RowRun {
  int64_t sequence, first, count;
};

// The scores of some rows: each row's visible tokens are ranges[sequence * p.rows + row]. Cut into
// units so that all threads have work, on as many threads as pay for being woken.
void run_scores(const Kernels& kernels, IndexerScores p, const std::vector<TokenRange>& ranges,
                const std::vector<RowRun>& runs);

// The work list holds every segment of `segment` tokens of every sequence, in order. Processor p
// of `processors` starts at start[2p] = sequence, start[2p + 1] = its segment; counts differ by at
// most one, the first processors take the larger ones. Row `processors` is (batch, 0), as is that
// of a processor without work.
void split_segments(const int64_t* lengths, int64_t batch, int64_t segment, int64_t processors,
                    int32_t* start, int64_t start_stride);

}  // namespace mate::cpu
