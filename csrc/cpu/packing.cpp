#include "cpu/packing.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/fp8.h"
#include "cpu/parallel.h"
#include "cpu/schedule.h"
#include "params.h"

namespace mate::cpu {

namespace {

void pack_panel(char* to, const char* from, int64_t bytes, bool split) {
  for (int64_t at = 0; at < bytes; at += 4, to += 4 * kPackedRows) {
    for (int64_t row = 0; row < kPackedRows; ++row) {
      const char* four = from + row * bytes + at;
      if (split) {
        char* lane = to + row / 4 * 16 + row % 4 * 2;
        std::memcpy(lane, four, 2);
        std::memcpy(lane + 8, four + 2, 2);
      } else {
        std::memcpy(to + row * 4, four, 4);
      }
    }
  }
}

// Large pages where the system gives them on request: weights are read once per token, through
// more pages of 4 KiB than a processor keeps the addresses of. What it refuses changes nothing.
void ask_for_large_pages(void* memory, int64_t bytes) {
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers lack
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (begin >= end) return;
  auto* first = reinterpret_cast<void*>(begin);
  if (madvise(first, end - begin, MADV_HUGEPAGE) == 0) madvise(first, end - begin, kCollapse);
}

}  // namespace

bool has_nan_codes(const void* codes, int64_t count, int threads) {
  constexpr int64_t kRun = 1 << 20;
  std::atomic<bool> found{false};
  parallel_for(ceil_div(count, kRun), threads, [&](int64_t i) {
    const auto* first = static_cast<const uint8_t*>(codes) + i * kRun;
    const int64_t size = std::min(kRun, count - i * kRun);
    bool here = false;
    for (int64_t j = 0; j < size; ++j) here |= is_nan_code(first[j]);
    if (here) found = true;
  });
  return found;
}

void pack_weights(void* to, const void* from, int64_t rows, int64_t elements, int64_t size,
                  PackedOrder order, int threads) {
  const bool split = size == 1 && order == PackedOrder::kPairs;
  const int64_t bytes = elements * size, panel = bytes * kPackedRows;
  ask_for_large_pages(to, rows * bytes);
  parallel_for(rows / kPackedRows, threads, [&](int64_t i) {
    auto* copy = static_cast<char*>(scratch(panel));
    std::memcpy(copy, static_cast<const char*>(from) + i * panel, panel);
    pack_panel(static_cast<char*>(to) + i * panel, copy, bytes, split);
  });
}

}  // namespace mate::cpu
