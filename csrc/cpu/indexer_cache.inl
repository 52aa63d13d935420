// Keys of the indexer into their paged cache.

void quantise_keys(const QuantiseKeys& p) {
  const KeyCache& cache = p.cache;
  const int64_t size = size_of(p.type);
  for_row_runs(p.slots.count, cache.depth * size, p.num_threads, [&](int64_t first, int64_t last) {
    float* x = static_cast<float*>(scratch(whole_steps(cache.depth) * sizeof(float)));
    for (int64_t i = first; i < last; ++i) {
      const int64_t slot = p.slots.at(i);
      if (slot < 0 || slot >= cache.num_blocks * cache.block_size) continue;
      const int64_t block = slot / cache.block_size, row = slot % cache.block_size;
      const char* src = p.k + i * p.row_stride * size;
      const float amax = with_wide_type(
          p.type, [&](auto type) { return plain_floats<type()>(x, src, cache.depth); });
      const float scale = group_scale(amax, 1e-4f, DType::kE4M3, p.power_of_two);
      store_codes<DType::kE4M3>(reinterpret_cast<uint8_t*>(cache.codes(block, row)), x, cache.depth,
                                scale);
      std::memcpy(cache.scale(block, row), &scale, sizeof(scale));
    }
  });
}
