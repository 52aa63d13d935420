// The steps in which k passes by, none of which reaches into a second block of scales.
#pragma once

#include "params.h"

namespace mate::gpu::portable {

// How k is cut: into blocks of scales, and those into steps that are loaded at a time.
struct Cuts {
  int64_t k_end, k_block;
  int steps_per_block;
};

// Kept small: what it tells is worked out from two numbers.
template <int kDepth>
class Step {
 public:
  // The cuts stay where they are.
  __device__ explicit Step(const Cuts& cuts) : cuts_(cuts) {}

  __device__ int64_t first() const { return block_ * cuts_.k_block + in_block(); }
  __device__ bool exists() const { return first() < cuts_.k_end; }
  __device__ int count() const {
    return static_cast<int>(min(static_cast<int64_t>(kDepth), left()));
  }
  __device__ int block() const { return block_; }
  __device__ bool starts_block() const { return number_ == block_ * cuts_.steps_per_block; }
  __device__ bool is_odd() const { return number_ % 2 != 0; }
  __device__ void advance() {
    ++number_;
    block_ += number_ == (block_ + 1) * cuts_.steps_per_block;
  }

 private:
  __device__ int64_t in_block() const {
    return static_cast<int64_t>(number_ - block_ * cuts_.steps_per_block) * kDepth;
  }
  __device__ int64_t left() const { return min(cuts_.k_block - in_block(), cuts_.k_end - first()); }

  const Cuts& cuts_;
  int number_ = 0, block_ = 0;
};

}  // namespace mate::gpu::portable
