// How a grouped product is cut into units of work: row block x column block of one group.
#pragma once

#include <vector>

#include "params.h"

namespace mate::cpu {

struct Unit {
  const Group* group;
  int64_t row_first, rows;  // within the group
  int64_t col_first, cols;
};

class Schedule {
 public:
  // Columns per unit shrink below kBlockN (never across a scale block) until every thread gets
  // several units, unless `whole_blocks` asks for kBlockN.
  // `block_m` rows at most, a multiple of kBlockM.
  Schedule(const GroupedGemm& p, bool whole_blocks, int64_t block_m = kBlockM);
  int64_t size() const { return first_.back(); }
  Unit at(int64_t i) const;

 private:
  const GroupedGemm& p_;
  int64_t block_m_, cols_, col_blocks_;
  std::vector<int64_t> first_;  // [num_groups + 1] number of the first unit of each group
};

// Scratch of the calling thread, at least `bytes` long and 64-byte aligned; kept until it exits.
void* scratch(int64_t bytes);

// The same for what one thread hands to those that work for it.
void* shared_scratch(int64_t bytes);

}  // namespace mate::cpu
