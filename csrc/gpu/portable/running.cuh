// Scans over more numbers than a block has threads.
#pragma once

#include "gpu/block_scan.cuh"

namespace mate::gpu::portable {

// Results over numbers that are not negative, of which each thread of a block has one at a time.
template <typename Op>
class Running {
 public:
  // Over all numbers so far and those of the threads before this one.
  __device__ int64_t before(int64_t number) {
    __shared__ int64_t room[kWarp];
    __syncthreads();
    const Prefix<int64_t> here = scan_block(number, room, Op());
    const int64_t result = Op()(all_, here.before);
    all_ = Op()(all_, here.all);
    return result;
  }
  __device__ int64_t all() const { return all_; }

 private:
  int64_t all_ = 0;
};

}  // namespace mate::gpu::portable
