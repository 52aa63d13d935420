#include "cpu/packing.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "cpu/parallel.h"
#include "cpu/schedule.h"
#include "params.h"

namespace mate::cpu {

namespace {

// Which of the four bytes of each row of a line go where: bytes 0 and 1 of rows 4 q to 4 q + 3 to
// 16 q, bytes 2 and 3 behind them. Elements of 2 bytes keep a row's four bytes together.
void pack_panel(char* to, const char* from, int64_t bytes, int64_t size) {
  for (int64_t at = 0; at < bytes; at += 4, to += 4 * kPackedRows) {
    for (int64_t row = 0; row < kPackedRows; ++row) {
      const char* four = from + row * bytes + at;
      if (size == 1) {
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

void pack_weights(void* to, const void* from, int64_t rows, int64_t elements, int64_t size,
                  int threads) {
  const int64_t bytes = elements * size, panel = bytes * kPackedRows;
  ask_for_large_pages(to, rows * bytes);
  parallel_for(rows / kPackedRows, threads, [&](int64_t i) {
    auto* copy = static_cast<char*>(scratch(panel));
    std::memcpy(copy, static_cast<const char*>(from) + i * panel, panel);
    pack_panel(static_cast<char*>(to) + i * panel, copy, bytes, size);
  });
}

}  // namespace mate::cpu
