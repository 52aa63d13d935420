#include "cpu/mla_schedule.h"

#include <algorithm>

namespace mate::cpu {
namespace {

// Many heads share the decoded rows where there are tokens enough to keep the threads busy.
constexpr int64_t kFewHeads = 16, kManyHeads = 64;
constexpr int64_t kUnitsPerThread = 4;
constexpr int64_t kPartsPerThread =
    64;  // each holds sums of a unit: up to 32 KiB at a width of 512
constexpr int64_t kMostSegments = 32;
constexpr int64_t kWorkPerThread = 1 << 18;  // multiply-adds, a few microseconds

// Selections of a token up to its last one; 0 for padding.
int64_t selections(const SparseMla& p, int64_t token) {
  const int64_t request = p.request_of[token * p.request_stride];
  if (request < 0 || request >= p.kv.num_requests) return 0;
  if (p.lengths != nullptr) {
    const int64_t length = p.lengths[token * p.length_stride];
    return std::min(std::max<int64_t>(length, 0), p.kv.table_width * p.kv.block_size);
  }
  const int32_t* row = p.indices + token * p.index_stride;
  int64_t count = p.num_indices;
  while (count > 0 && row[count - 1] < 0) --count;
  return count;
}

}  // namespace

std::vector<MlaUnit> mla_units(SparseMla& p) {
  std::vector<int64_t> counts(p.tokens);
  int64_t work = 0;
  for (int64_t t = 0; t < p.tokens; ++t) {
    counts[t] = selections(p, t);
    work += (counts[t] + 1) * p.heads * (p.depth + p.value_dim);
  }
  p.num_threads = static_cast<int>(std::min<int64_t>(p.num_threads, 1 + work / kWorkPerThread));
  const int64_t wanted = p.num_threads == 1 ? 1 : kUnitsPerThread * p.num_threads;
  const bool many = p.tokens * ceil_div(p.heads, kManyHeads) >= wanted;
  const int64_t heads = many ? kManyHeads : kFewHeads;
  std::vector<MlaUnit> units;
  int64_t parts = 0;
  for (int64_t t = 0; t < p.tokens; ++t) {
    int64_t segment = ceil_div(ceil_div(counts[t], kMostSegments), kMlaTile) * kMlaTile;
    segment = std::max(segment, kMlaSegment);
    for (int64_t h = 0; h < p.heads; h += heads) {
      const int64_t segments = ceil_div(counts[t], segment);
      units.push_back({t, h, std::min(heads, p.heads - h), counts[t], segment, segments, parts});
      parts += segments;
    }
  }
  const auto num_units = static_cast<int64_t>(units.size());
  const bool apart = num_units < wanted && parts > num_units && p.num_threads > 1;
  p.num_parts = apart && parts <= kPartsPerThread * p.num_threads ? parts : 0;
  return units;
}

}  // namespace mate::cpu
