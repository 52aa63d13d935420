#include "cpu/indexer_schedule.h"

#include <algorithm>

namespace mate::cpu {
namespace {

constexpr int64_t kQueryBytes = 256 << 10;  // decoded queries of a unit stay in the second cache
constexpr int64_t kMaxRows = 32;
// Tokens per unit: enough to pay for decoding the queries, few enough to balance the threads.
constexpr int64_t kMinTokens = 240, kMaxTokens = 3840;
constexpr int64_t kUnitsPerThread = 8;
constexpr int64_t kWorkPerThread = 1 << 18;  // multiply-adds, a few microseconds

// Tokens that any row of [first, first + rows) sees, the first rounded down to a group.
TokenRange hull(const TokenRange* ranges, int64_t rows) {
  TokenRange all{0, 0, 0};
  for (int64_t i = 0; i < rows; ++i) {
    if (ranges[i].first >= ranges[i].end) continue;
    bool empty = all.end == 0;
    all.first = empty ? ranges[i].first : std::min(all.first, ranges[i].first);
    all.end = std::max(all.end, ranges[i].end);
  }
  all.first = all.first / kKeyGroup * kKeyGroup;
  return all;
}

// Units that cover the visible tokens of every row; first tokens are multiples of kKeyGroup.
std::vector<ScoreUnit> score_units(const IndexerScores& p, const std::vector<RowRun>& runs) {
  const int64_t row_bytes = std::max<int64_t>(1, p.heads * p.depth * sizeof(float));
  const int64_t rows = std::min(kMaxRows, std::max<int64_t>(1, kQueryBytes / row_bytes));
  std::vector<ScoreUnit> wholes;
  int64_t tokens = 0;
  for (const RowRun& run : runs) {
    for (int64_t r = 0; r < run.count; r += rows) {
      const int64_t first = run.first + r, count = std::min(rows, run.count - r);
      TokenRange seen = hull(p.ranges + run.sequence * p.rows + first, count);
      if (seen.end == 0) continue;
      wholes.push_back({run.sequence, first, count, seen.first, seen.end});
      tokens += seen.end - seen.first;
    }
  }
  // Equal parts, as many for each thread: few tokens would else leave one of them with more.
  const int64_t threads = std::max(1, p.num_threads);
  const int64_t each = std::max<int64_t>(1, tokens / (threads * kMinTokens));
  int64_t part = ceil_div(tokens, threads * std::min(each, kUnitsPerThread));
  part = std::min(ceil_div(part, kKeyGroup) * kKeyGroup, kMaxTokens);
  std::vector<ScoreUnit> units;
  for (const ScoreUnit& whole : wholes) {
    for (int64_t t = whole.token_first; t < whole.token_end; t += part) {
      units.push_back(whole);
      units.back().token_first = t;
      units.back().token_end = std::min(t + part, whole.token_end);
    }
  }
  return units;
}

// At most p.num_threads, one where there is little to do.
int useful_threads(const IndexerScores& p, const std::vector<TokenRange>& ranges) {
  int64_t work = p.clean ? p.batch * p.rows * p.columns : 0;
  for (const TokenRange& seen : ranges) {
    work += std::max<int64_t>(0, seen.end - seen.first) * p.heads * p.depth;
  }
  return static_cast<int>(std::min<int64_t>(p.num_threads, 1 + work / kWorkPerThread));
}

}  // namespace

void run_scores(const Kernels& kernels, IndexerScores p, const std::vector<TokenRange>& ranges,
                const std::vector<RowRun>& runs) {
  p.ranges = ranges.data();
  p.num_threads = useful_threads(p, ranges);
  const std::vector<ScoreUnit> units = score_units(p, runs);
  p.units = units.data();
  p.num_units = static_cast<int64_t>(units.size());
  kernels.indexer_scores(p);
}

void split_segments(const int64_t* lengths, int64_t batch, int64_t segment, int64_t processors,
                    int32_t* start, int64_t start_stride) {
  auto segments = [&](int64_t s) { return ceil_div(std::max<int64_t>(lengths[s], 0), segment); };
  int64_t total = 0;
  for (int64_t s = 0; s < batch; ++s) total += segments(s);
  int64_t sequence = 0, before = 0;  // segments of the sequences already passed
  for (int64_t p = 0; p <= processors; ++p) {
    int64_t first = p * (total / processors) + std::min(p, total % processors);
    while (sequence < batch && before + segments(sequence) <= first) before += segments(sequence++);
    start[p * start_stride] = static_cast<int32_t>(sequence);
    start[p * start_stride + 1] = static_cast<int32_t>(sequence < batch ? first - before : 0);
  }
}

}  // namespace mate::cpu
