// How scores are cut into units of work, and the published split of a paged batch over processors.
#pragma once

#include <vector>

#include "indexer_params.h"

namespace mate::cpu {

// Units that cover the visible tokens of every row; first tokens are multiples of kKeyGroup.
std::vector<ScoreUnit> score_units(const IndexerScores& p);

// Threads that pay for being woken: at most p.num_threads, one where there is little to do.
int useful_threads(const IndexerScores& p);

// The work list holds every segment of `segment` tokens of every sequence, in order. Processor p
// of `processors` starts at start[2p] = sequence, start[2p + 1] = its segment; counts differ by at
// most one, the first processors take the larger ones. Row `processors` is (batch, 0), as is that
// of a processor without work.
void split_segments(const int64_t* lengths, int64_t batch, int64_t segment, int64_t processors,
                    int32_t* start, int64_t start_stride);

}  // namespace mate::cpu
