#include "cpu/schedule.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

namespace mate::cpu {

Schedule::Schedule(const GroupedGemm& p, bool whole_blocks) : p_(p), cols_(kBlockN) {
  int64_t row_blocks = 0;
  first_.reserve(p.num_groups + 1);
  first_.push_back(0);
  for (int64_t g = 0; g < p.num_groups; ++g) {
    row_blocks += ceil_div(p.groups[g].count, kBlockM);
    first_.push_back(row_blocks);
  }
  while (!whole_blocks && cols_ > kBlockN / 4 &&
         row_blocks * ceil_div(p.n, cols_) < 4 * p.num_threads) {
    cols_ /= 2;
  }
  col_blocks_ = ceil_div(p.n, cols_);
  for (int64_t& first : first_) first *= col_blocks_;
}

Unit Schedule::at(int64_t i) const {
  int64_t g = std::upper_bound(first_.begin(), first_.end(), i) - first_.begin() - 1;
  const Group& group = p_.groups[g];
  int64_t row_block = (i - first_[g]) / col_blocks_, col_block = (i - first_[g]) % col_blocks_;
  int64_t row = row_block * kBlockM, col = col_block * cols_;
  return {&group, row_block,
          row,    std::min(kBlockM, group.count - row),
          col,    std::min(cols_, p_.n - col)};
}

void* scratch(int64_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local int64_t capacity = 0;
  if (bytes > capacity) {
    buffer.reset();
    capacity = ceil_div(bytes, 4096) * 4096;
    buffer.reset(std::aligned_alloc(64, capacity));
    if (!buffer) {
      capacity = 0;
      throw std::bad_alloc();
    }
  }
  return buffer.get();
}

}  // namespace mate::cpu
