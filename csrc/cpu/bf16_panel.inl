// Panels of B for products of BF16 pairs: kPanelLanes rows of B side by side, dst[k / 2][row] holds
// elements k and k + 1 of a row.

constexpr int kTileGroups = 2;
constexpr int64_t kPanelCols = kTileGroups * kPanelLanes;

// dst[0 .. whole / 2)[kPanelLanes] from `count` elements of the rows, zeros after them; whole is a
// multiple of kSegment.
template <DType type, typename Source>
inline void write_panel(uint32_t* dst, const Source& source, int64_t count, int64_t whole) {
  constexpr int64_t kSize = size_of(type);
  const int64_t bytes = count * kSize;
  const ToPairs<type> to_pairs;
  for (int64_t at = 0; at < whole * kSize; at += kLineBytes) {
    typename Source::Lines lines;
    alignas(64) char end[kPanelLanes * kLineBytes];
    if (at + kLineBytes <= bytes) {
      source.load(at, lines);
    } else {
      std::memset(end, 0, sizeof(end));
      source.load_end(at, bytes - at, end, lines);
    }
    uint32_t* to = dst + at / kSize / 2 * kPanelLanes;
    for (int part = 0; part < 4; ++part) {
      __m512i codes[4], pairs[ToPairs<type>::kPairs];
      source.part(lines, part, codes);
      for (const __m512i& four : codes) {
        to_pairs(four, pairs);
        for (const __m512i& pair : pairs) {
          _mm512_store_si512(to, pair);
          to += kPanelLanes;
        }
      }
    }
  }
}
