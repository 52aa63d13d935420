// What the machine can do at most, for benchmarks to divide by: products from registers, and reads
// of memory.

// Runs `steps` rounds of independent multiply-adds on each thread; returns the operations done.
// The sum goes to *sink so that the work cannot be dropped.
int64_t multiply_adds(int64_t steps, int threads, float* sink) {
  constexpr int kChains = 12;
  std::atomic<float> total{0};
  parallel_for(threads, threads, [&](int64_t thread) {
    Vec acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = set1(static_cast<float>(thread + i));
    Vec x = set1(0.999f), y = set1(0.001f);
    for (int64_t s = 0; s < steps; ++s) {
      for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], x, y);
    }
    Vec sum = zero();
    for (int i = 0; i < kChains; ++i) sum = add(sum, acc[i]);
    float lanes[kLanes];
    store(lanes, sum);
    add_to(total, lanes[0]);
  });
  *sink = total;
  return steps * threads * kChains * kLanes * 2;
}

// Reads `bytes` (a multiple of 64) once, in one contiguous part for each thread.
void read_memory(const void* from, int64_t bytes, int threads, float* sink) {
  const float* data = static_cast<const float*>(from);
  const int64_t lines = bytes / 64, part = ceil_div(lines, threads);
  std::atomic<float> total{0};
  parallel_for(threads, threads, [&](int64_t thread) {
    const int64_t last = std::min(lines, (thread + 1) * part) * 16;
    Vec acc[16 / kLanes];
    for (Vec& v : acc) v = zero();
    for (int64_t i = thread * part * 16; i < last; i += 16) {
      for (int j = 0; j < 16 / kLanes; ++j) acc[j] = add(acc[j], load(data + i + j * kLanes));
    }
    float lanes[kLanes];
    store(lanes, acc[0]);
    add_to(total, lanes[0]);
  });
  *sink = total;
}
