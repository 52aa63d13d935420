#include "cpu/schedule.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

namespace mate::cpu {

namespace {

class Buffer {
 public:
  void* get(int64_t bytes) {
    if (bytes > capacity_) {
      data_.reset();
      capacity_ = ceil_div(bytes, 4096) * 4096;
      data_.reset(std::aligned_alloc(64, capacity_));
      if (!data_) {
        capacity_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace

int64_t few_columns(int64_t row_blocks, int64_t n, int num_threads) {
  int64_t cols = kBlockN;
  while (cols > kBlockN / 4 && row_blocks * ceil_div(n, cols) < 4 * num_threads) cols /= 2;
  return cols;
}

int64_t few_columns(const GroupedGemm& p, int64_t block_m) {
  int64_t row_blocks = 0;
  for (int64_t g = 0; g < p.num_groups; ++g) row_blocks += ceil_div(p.groups[g].count, block_m);
  return few_columns(row_blocks, p.n, p.num_threads);
}

Schedule::Schedule(const GroupedGemm& p, int64_t cols, int64_t block_m)
    : p_(p), block_m_(block_m), cols_(cols), col_blocks_(ceil_div(p.n, cols)) {
  int64_t units = 0;
  first_.reserve(p.num_groups + 1);
  first_.push_back(0);
  for (int64_t g = 0; g < p.num_groups; ++g) {
    units += ceil_div(p.groups[g].count, block_m) * col_blocks_;
    first_.push_back(units);
  }
}

Unit Schedule::at(int64_t i) const {
  int64_t g = std::upper_bound(first_.begin(), first_.end(), i) - first_.begin() - 1;
  const Group& group = p_.groups[g];
  int64_t row_block = (i - first_[g]) / col_blocks_, col_block = (i - first_[g]) % col_blocks_;
  int64_t row = row_block * block_m_, col = col_block * cols_;
  return {&group, row, std::min(block_m_, group.count - row), col, std::min(cols_, p_.n - col)};
}

void* scratch(int64_t bytes) {
  thread_local Buffer buffer;
  return buffer.get(bytes);
}

void* shared_scratch(int64_t bytes) {
  thread_local Buffer buffer;
  return buffer.get(bytes);
}

}  // namespace mate::cpu
