// Units of work to threads: grids, divisions, widths of accesses.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "gpu/device_api.h"
#include "gpu/launch.h"

namespace mate::gpu {

constexpr unsigned kAllLanes = 0xffffffff;

// Blocks to launch for so many blocks of work (below 2^31); kernels step through what is beyond.
// Where a call may not use the whole device, as many as the multiprocessors it may use can hold.
inline unsigned grid_of(int64_t blocks, int threads, const Launch& launch) {
  int64_t most = blocks;
  if (launch.num_sms < num_sms(launch.device)) most = launch.num_sms * (2048 / threads);
  return static_cast<unsigned>(std::min(blocks, most));
}

inline int64_t blocks_of(int64_t units, int64_t units_per_block) {
  return (units + units_per_block - 1) / units_per_block;
}

// The least number whose power of two is not below n.
inline int log_above(int64_t n) {
  int log = 0;
  while ((int64_t{1} << log) < n) ++log;
  return log;
}

// Divides numbers below 2^31 by one that is known before the launch: their product with the
// rounded-up inverse is exact, where a division takes tens of instructions.
class Divider {
 public:
  explicit Divider(int64_t divisor) {
    if (divisor < 1 || divisor > INT32_MAX) throw std::out_of_range("a divisor beyond 31 bits");
    shift_ = 31 + log_above(divisor);
    divisor_ = static_cast<uint32_t>(divisor);
    inverse_ = static_cast<uint32_t>((uint64_t{1} << shift_) / divisor_ + 1);
  }

  __device__ uint32_t divide(uint32_t n, uint32_t& remainder) const {
    const auto quotient = static_cast<uint32_t>(static_cast<uint64_t>(n) * inverse_ >> shift_);
    remainder = n - quotient * divisor_;
    return quotient;
  }

 private:
  uint32_t divisor_, inverse_;
  int shift_;
};

// Cuts rows of many units each so that the units of every launch can be counted in 31 bits:
// f(first row, rows, first unit of each row, units of each row).
template <typename F>
void for_launches(int64_t rows, int64_t per_row, const F& f) {
  constexpr int64_t kMost = 1 << 30;
  for (int64_t unit = 0; unit < per_row; unit += kMost) {
    const int64_t units = std::min(per_row - unit, kMost), most_rows = kMost / units;
    for (int64_t row = 0; row < rows; row += most_rows) {
      f(row, std::min(rows - row, most_rows), unit, units);
    }
  }
}

inline int64_t address(const void* p) { return reinterpret_cast<intptr_t>(p); }

// Calls f with a value of the widest type that all of the numbers or-ed together (addresses,
// strides and sizes in bytes) are multiples of.
template <typename F>
void with_access(int64_t numbers, const F& f) {
  if (numbers % 16 == 0) {
    f(uint4());
  } else if (numbers % 4 == 0) {
    f(uint32_t());
  } else if (numbers % 2 == 0) {
    f(uint16_t());
  } else {
    f(uint8_t());
  }
}

}  // namespace mate::gpu
