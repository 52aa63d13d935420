// Products of a GEMM with AVX-512 BF16.

constexpr int64_t kNarrowRows = 8, kUnitRows = 256, kPart = 512;
// Bytes of a panel up to which the next is fetched as it lies; longer rows are followed (Zen 4).
constexpr int64_t kFetchInOrder = 65536;
constexpr int64_t kBlockRows = 12;  // 24 accumulators, of 32 vector registers

inline void add_scaled(const Bf16Tile& t, int64_t m, int64_t group, int64_t segment, __m512 acc) {
  ScaledSum(t, m, group).add(segment, acc);
}

template <int rows, int groups>
inline void dot_pairs(const Bf16Tile& t) {
  for (int64_t s = 0; s < t.segments; ++s) {
    pair_tile<rows, groups>(t.a + s * kSegment, t.lda, t.b + s * kSegment / 2 * kPanelLanes,
                            t.group_stride, kSegment, [&](int m, const Vec(&sums)[groups]) {
                              for (int g = 0; g < groups; ++g) add_scaled(t, m, g, s, sums[g]);
                            });
  }
}

// The same for few rows of A and two segments of one group of columns, straight from the codes of
// B. Two segments side by side keep the multipliers busy, where one would wait for its own sums;
// more rows of B at once would push each other out of the cache where they lie a power of two
// apart.
template <DType type, int rows>
inline void stream_pairs(const Bf16Tile& t, const char* const* codes, int64_t segment,
                         const Ahead& ahead) {
  constexpr int kSegments = 2;
  constexpr int64_t kCodes = PanelWriter<type>::kCodes, kSize = 16 / kCodes;
  const PanelWriter<type> writer;
  Vec acc[kSegments][rows];
  clear(acc);
  for (int64_t k = 0; k < kSegment; k += 4 * kCodes) {
    RowLines lines[kSegments];
    for (int s = 0; s < kSegments; ++s) {
      const int64_t at = ((segment + s) * kSegment + k) * kSize;
      ahead.fetch(at);
      load_lines(codes, at, lines[s]);
    }
    for (int part = 0; part < 4; ++part) {
      for (int s = 0; s < kSegments; ++s) {
        const uint16_t* a = t.a + (segment + s) * kSegment + k + part * kCodes;
        writer.pairs(lines[s][part], [&](int pair, __m512i dwords) {
          for (int m = 0; m < rows; ++m) {
            const __m512bh x = pair_at(a + m * t.lda + 2 * pair);
            acc[s][m] = _mm512_dpbf16_ps(acc[s][m], x, (__m512bh)dwords);
          }
        });
      }
    }
  }
  for (int s = 0; s < kSegments; ++s) {
    for (int m = 0; m < rows; ++m) add_scaled(t, m, 0, segment + s, acc[s][m]);
  }
}

struct Tiles {
  void multiply(const Bf16Tile& t, int64_t rows) {
    with_count<kBlockRows>(rows, [&](auto count) { dot_pairs<count(), kTileGroups>(t); });
  }
  void finish() {}
};

// Codes of one group of columns times up to kNarrowRows rows.
template <DType type>
inline void multiply_codes(const Bf16Tile& t, int64_t rows, const char* const* codes, int64_t count,
                           const Ahead& ahead, uint32_t* panel, Tiles&) {
  const int64_t streamed = count / (2 * kSegment) * 2;
  with_count<kNarrowRows>(rows, [&](auto rows) {
    for (int64_t s = 0; s < streamed; s += 2) stream_pairs<type, rows()>(t, codes, s, ahead);
    if (streamed == t.segments) return;
    const char* left[kPanelLanes];
    const int64_t k = streamed * kSegment;
    for (int i = 0; i < kPanelLanes; ++i) left[i] = codes[i] + k * size_of(type);
    write_panel<type>(panel, left, count - k, t.segments * kSegment - k, ahead);
    Bf16Tile rest = t;
    rest.a += k;
    rest.scale += streamed;
    if (rest.col_scale != nullptr) rest.col_scale += streamed * kPanelCols;
    rest.segments -= streamed;
    dot_pairs<rows(), 1>(rest);
  });
}
