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

// Items of work that may run side by side.
template <typename Body>
struct Items {
  int64_t count;
  const Body& body;
};

template <typename Body>
Items<Body> items(int64_t count, const Body& body) {
  return {count, body};
}

// Runs steps one after the other on the same threads; each sees all that the one before has done.
template <typename... Bodies>
void parallel_steps(int threads, const Items<Bodies>&... steps) {
#ifdef __SANITIZE_THREAD__
  (parallel_for(steps.count, threads, steps.body), ...);
#else
  const int64_t most = std::max({int64_t{1}, steps.count...});
  if (threads > most) threads = static_cast<int>(most);
  if (threads <= 1) return (parallel_for(steps.count, 1, steps.body), ...);
  std::atomic<int64_t> next[sizeof...(steps)] = {};
#pragma omp parallel num_threads(threads)
  {
    std::atomic<int64_t>* taken = next;
    auto run = [&](const auto& step) {
      for (int64_t i; (i = taken->fetch_add(1, std::memory_order_relaxed)) < step.count;) {
        step.body(i);
      }
      ++taken;
#pragma omp barrier
    };
    (run(steps), ...);
  }
#endif
}

// Runs body(first, last) over runs of rows, each of at least kRunBytes where there are as many.
constexpr int64_t kRunBytes = 32768;

inline int64_t rows_per_run(int64_t bytes_per_row) {
  return std::max<int64_t>(1, kRunBytes / std::max<int64_t>(1, bytes_per_row));
}

template <typename Body>
void for_row_runs(int64_t rows, int64_t bytes_per_row, int threads, const Body& body) {
  const int64_t run = rows_per_run(bytes_per_row);
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
