// Loops over the threads of the OpenMP runtime that the host process has loaded.
#pragma once

#ifdef __SANITIZE_THREAD__
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif

#include <algorithm>
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
#ifdef __SANITIZE_THREAD__
  // ThreadSanitizer does not see the barriers of an OpenMP runtime. Items are dealt out in turn: if
  // taken by whoever is free, those of a small case would all run on one thread and race with none.
  const auto share = [&](int64_t i) {
    for (; i < count; i += threads) body(i);
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(share, t);
  share(0);
  for (std::thread& other : others) other.join();
#else
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads)
  for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
#endif
}

// Runs body(first, last) over runs of rows, each of at least kRunBytes where there are as many.
constexpr int64_t kRunBytes = 32768;

template <typename Body>
void for_row_runs(int64_t rows, int64_t bytes_per_row, int threads, const Body& body) {
  const int64_t run = std::max<int64_t>(1, kRunBytes / std::max<int64_t>(1, bytes_per_row));
  parallel_for((rows + run - 1) / run, threads,
               [&](int64_t i) { body(i * run, std::min(rows, (i + 1) * run)); });
}

// Adds to a number that other threads add to as well.
inline void add_to(std::atomic<float>& total, float x) {
  float seen = total.load();
  while (!total.compare_exchange_weak(seen, seen + x)) {
  }
}

}  // namespace mate::cpu
