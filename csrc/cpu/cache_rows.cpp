#include "cpu/cache_rows.h"

#include <algorithm>
#include <cstring>

#include "cpu/parallel.h"

namespace mate::cpu {
namespace {

// Copies `count` rows of one block, or clears them where there is no such block.
void gather_span(const GatherKeys& p, int64_t to, int64_t block, int64_t row, int64_t count) {
  const bool exists = block >= 0 && block < p.cache.num_blocks;
  for (int64_t i = 0; i < count; ++i) {
    char* codes = p.codes + (to + i) * p.row_stride;
    float* scale = p.scales + (to + i) * p.scale_stride;
    if (exists) {
      std::memcpy(codes, p.cache.codes(block, row + i), p.cache.depth);
      std::memcpy(scale, p.cache.scale(block, row + i), sizeof(float));
    } else {
      std::memset(codes, 0, p.cache.depth);
      *scale = 0;
    }
  }
}

}  // namespace

void gather_keys(const GatherKeys& p) {
  const int64_t *starts = p.starts, *end = starts + p.num_requests + 1, size = p.cache.block_size;
  const int64_t rows = std::min(p.rows, starts[p.num_requests]);
  for_row_runs(rows, p.cache.depth, p.num_threads, [&](int64_t first, int64_t last) {
    int64_t request = std::upper_bound(starts, end, first) - starts - 1;
    for (int64_t to = first; to < last;) {
      while (starts[request + 1] <= to) ++request;
      const int64_t position = to - starts[request], row = position % size;
      const int64_t count = std::min({size - row, starts[request + 1] - to, last - to});
      gather_span(p, to, p.block_table[request * p.table_stride + position / size], row, count);
      to += count;
    }
  });
}

void write_rows(const WriteRows& p) {
  const int64_t bytes = p.parts[0].bytes + p.parts[1].bytes;
  for_row_runs(p.slots.count, bytes, p.num_threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t slot = p.slots.at(i);
      if (slot < 0 || slot >= p.num_blocks * p.block_size) continue;
      char* to =
          p.cache + slot / p.block_size * p.block_stride + slot % p.block_size * p.row_stride;
      for (const WriteRows::Part& part : p.parts) {
        if (part.bytes == 0) continue;  // its tensor has no memory
        std::memcpy(to, part.data + i * part.row_stride, part.bytes);
        to += part.bytes;
      }
    }
  });
}

}  // namespace mate::cpu
