// The same as multiply_adds for products of BF16; nullptr where there is no instruction for them.

// Pairs of bf16 products, added to float32.
int64_t pair_products(int64_t steps, int threads, float* sink) {
  constexpr int kChains = 16;
  std::atomic<float> total{0};
  parallel_for(threads, threads, [&](int64_t thread) {
    __m512 acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(thread + i));
    // Pairs of 1 and -0.5: the sums neither overflow nor become subnormal.
    const __m512bh x = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    const __m512bh y = (__m512bh)_mm512_set1_epi32(static_cast<int>(0xbf003f80));
    for (int64_t s = 0; s < steps; ++s) {
      for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], x, y);
    }
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < kChains; ++i) sum = _mm512_add_ps(sum, acc[i]);
    add_to(total, _mm512_cvtss_f32(sum));
  });
  *sink = total;
  return steps * threads * kChains * 32 * 2;
}

#if defined(__AMX_BF16__)
// Tiles of 16 x 32 times 32 x 16 bf16: two by two, as a GEMM multiplies them, so that four chains
// hide the latency.
int64_t tile_products(int64_t steps, int threads, float* sink) {
  std::atomic<float> total{0};
  parallel_for(threads, threads, [&](int64_t thread) {
    alignas(64) uint16_t operand[16 * 32];
    for (uint16_t& x : operand) x = 0x3f80;
    alignas(64) float sums[16 * 16] = {static_cast<float>(thread)};
    const TileSession session;
    tile_load<0>(sums, 64);
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    tile_load<4>(operand, 64);
    tile_load<5>(operand, 64);
    tile_load<6>(operand, 64);
    tile_load<7>(operand, 64);
    for (int64_t s = 0; s < steps; ++s) {
      tile_product<0, 4, 6>();
      tile_product<1, 4, 7>();
      tile_product<2, 5, 6>();
      tile_product<3, 5, 7>();
    }
    tile_store<0>(sums, 64);
    add_to(total, sums[0]);
  });
  *sink = total;
  return steps * threads * 4 * 16 * 16 * 32 * 2;
}
#else
constexpr Products tile_products = nullptr;
#endif
