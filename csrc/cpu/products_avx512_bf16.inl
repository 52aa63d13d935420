// Products of a GEMM with AVX-512 BF16.

constexpr int64_t kUnitRows = 256, kPart = 256;
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

// Groups of columns that few rows of A meet at once. Rows of B that lie a power of two apart would
// push each other out of the cache; packed ones do not, and halve the reads of A.
template <typename Source>
constexpr int kNarrowGroups = Source::kPacked ? 2 : 1;
// Rows whose sums fit in the registers beside what decoding needs, and those up to which decoding
// anew for each so many rows takes less time than a panel.
template <typename Source>
constexpr int64_t kStreamRows = Source::kPacked ? 10 : 8;
template <typename Source>
constexpr int64_t kNarrowRows = Source::kPacked ? 30 : 8;

// The same for few rows of A, straight from the codes of B. Segments side by side keep the
// multipliers busy, where few sums would wait for one another.
template <DType type, int rows, int segments, int groups, typename Source>
inline void stream_pairs(const Bf16Tile& t, const Source (&sources)[groups], int64_t segment) {
  constexpr int64_t kCodes = kPartElements<type>;
  constexpr int kPairs = ToPairs<type>::kPairs;
  const ToPairs<type> to_pairs;
  Vec acc[segments * groups][rows];
  clear(acc);
  for (int64_t k = 0; k < kSegment; k += 4 * kCodes) {
    typename Source::Lines lines[segments][groups];
    for (int s = 0; s < segments; ++s) {
      for (int g = 0; g < groups; ++g) {
        sources[g].load(((segment + s) * kSegment + k) * size_of(type), lines[s][g]);
      }
    }
    for (int part = 0; part < 4; ++part) {
#pragma GCC unroll 2
      for (int s = 0; s < segments; ++s) {
        const uint16_t* a = t.a + (segment + s) * kSegment + k + part * kCodes;
        __m512i codes[groups][4];
        for (int g = 0; g < groups; ++g) sources[g].part(lines[s][g], part, codes[g]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          __m512i y[groups][kPairs];
          for (int g = 0; g < groups; ++g) to_pairs(codes[g][i], y[g]);
          for (int j = 0; j < kPairs; ++j) {
            for (int m = 0; m < rows; ++m) {
              const __m512bh x = pair_at(a + m * t.lda + 2 * (i * kPairs + j));
              for (int g = 0; g < groups; ++g) {
                Vec& sum = acc[s * groups + g][m];
                sum = _mm512_dpbf16_ps(sum, x, (__m512bh)y[g][j]);
              }
            }
          }
        }
      }
    }
  }
  for (int s = 0; s < segments; ++s) {
    for (int g = 0; g < groups; ++g) {
      for (int m = 0; m < rows; ++m) add_scaled(t, m, g, segment + s, acc[s * groups + g][m]);
    }
  }
}

struct Tiles {
  void multiply(const Bf16Tile& t, int64_t rows) {
    with_count<kBlockRows>(rows, [&](auto count) { dot_pairs<count(), kTileGroups>(t); });
  }
  void finish() {}
};

// Codes of kNarrowGroups times up to kNarrowRows rows.
template <DType type, typename Source, int groups>
inline void multiply_codes(const Bf16Tile& t, int64_t rows, const Source (&sources)[groups],
                           int64_t count, uint32_t* panel, Tiles&) {
  constexpr int64_t kMost = kStreamRows<Source>;
  constexpr int kSegments = groups > 1 ? 1 : 2;
  const int64_t streamed = count / (kSegments * kSegment) * kSegments;
  const int64_t k = streamed * kSegment;
  if (streamed < t.segments) {
    for (int g = 0; g < groups; ++g) {
      Source left = sources[g];
      left.skip(k);
      write_panel<type>(panel + g * t.group_stride, left, count - k, t.segments * kSegment - k);
    }
  }
  const int64_t blocks = ceil_div(rows, kMost);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = i * rows / blocks, last = (i + 1) * rows / blocks;
    const Bf16Tile part = t.from_row(first);
    with_count<kMost>(last - first, [&](auto rows) {
      for (int64_t s = 0; s < streamed; s += kSegments) {
        stream_pairs<type, rows(), kSegments>(part, sources, s);
      }
      if (streamed == t.segments) return;
      dot_pairs<rows(), groups>(part.from_segment(streamed));
    });
  }
}
