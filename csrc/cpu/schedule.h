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

// Columns of a block where `row_blocks` blocks of rows have n columns: kBlockN, or fewer (never
// across a scale block) where that gives every thread several units.
int64_t few_columns(int64_t row_blocks, int64_t n, int num_threads);

// The same for units of up to block_m rows.
int64_t few_columns(const GroupedGemm& p, int64_t block_m);

class Schedule {
 public:
  // Units of `cols` columns and up to `block_m` rows.
  Schedule(const GroupedGemm& p, int64_t cols, int64_t block_m);
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
