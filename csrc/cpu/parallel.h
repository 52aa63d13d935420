// Loops over the threads of the OpenMP runtime that the host process has loaded.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>

namespace mate::cpu {

// Runs body(item) for items 0 .. count-1 on at most `threads` threads; each thread takes the
// next item as soon as it is free, so uneven items balance.
template <typename Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  if (count <= 0) return;
  if (threads > count) threads = static_cast<int>(count);
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads)
  for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
}

}  // namespace mate::cpu
