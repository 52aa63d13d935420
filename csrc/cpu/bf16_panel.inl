// Panels of B for products of BF16 pairs: kPanelLanes rows of B side by side, dst[k / 2][row] holds
// elements k and k + 1 of a row.

constexpr int64_t kSegment = 128, kPanelLanes = 16;
constexpr int kTileGroups = 2;
constexpr int64_t kPanelCols = kTileGroups * kPanelLanes;

// 64 bytes of each of 16 rows, by parts of 16 bytes: lane i of [part][j] is that of row 4 i + j.
using RowLines = __m512i[4][4];

// Each cache line is read once where rows a power of two apart would else push each other out of
// the cache, and shuffles are cheap.
inline void load_lines(const char* const* rows, int64_t offset, RowLines& lines) {
  if constexpr (kInsertsFromMemory) {
    for (int part = 0; part < 4; ++part) {
      for (int j = 0; j < 4; ++j) {
        auto lane = [&](int i) {
          const char* from = rows[4 * i + j] + offset + 16 * part;
          return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        };
        __m512i all = _mm512_castsi128_si512(lane(0));
        all = _mm512_inserti64x2(all, lane(1), 1);
        all = _mm512_inserti64x2(all, lane(2), 2);
        lines[part][j] = _mm512_inserti64x2(all, lane(3), 3);
      }
    }
    return;
  }
  for (int j = 0; j < 4; ++j) {
    auto line = [&](int i) { return _mm512_loadu_si512(rows[4 * i + j] + offset); };
    const __m512i a = line(0), b = line(1), c = line(2), d = line(3);
    const __m512i ab_even = _mm512_shuffle_i64x2(a, b, 0x88),
                  ab_odd = _mm512_shuffle_i64x2(a, b, 0xdd);
    const __m512i cd_even = _mm512_shuffle_i64x2(c, d, 0x88),
                  cd_odd = _mm512_shuffle_i64x2(c, d, 0xdd);
    // Lanes so far: parts 0 and 2 (1 and 3) of the first row, then of the second.
    lines[0][j] = _mm512_shuffle_i64x2(ab_even, cd_even, 0x88);
    lines[2][j] = _mm512_shuffle_i64x2(ab_even, cd_even, 0xdd);
    lines[1][j] = _mm512_shuffle_i64x2(ab_odd, cd_odd, 0x88);
    lines[3][j] = _mm512_shuffle_i64x2(ab_odd, cd_odd, 0xdd);
  }
}

// Turns rows of B into panel rows, 16 bytes of each at a time.
template <DType type>
class PanelWriter {
 public:
  static constexpr int64_t kCodes = type <= DType::kE5M2 ? 16 : 8;  // in 16 bytes

  // Calls put(pair, dwords) for the kCodes / 2 pairs of one part of the lines.
  template <typename Put>
  __attribute__((always_inline)) void pairs(const __m512i (&r)[4], const Put& put) const {
    if constexpr (type <= DType::kE5M2) {
      const __m512i low01 = _mm512_unpacklo_epi16(r[0], r[1]);
      const __m512i high01 = _mm512_unpackhi_epi16(r[0], r[1]);
      const __m512i low23 = _mm512_unpacklo_epi16(r[2], r[3]);
      const __m512i high23 = _mm512_unpackhi_epi16(r[2], r[3]);
      two_pairs(_mm512_unpacklo_epi32(low01, low23), 0, put);
      two_pairs(_mm512_unpackhi_epi32(low01, low23), 2, put);
      two_pairs(_mm512_unpacklo_epi32(high01, high23), 4, put);
      two_pairs(_mm512_unpackhi_epi32(high01, high23), 6, put);
    } else {
      const __m512i low01 = _mm512_unpacklo_epi32(r[0], r[1]);
      const __m512i high01 = _mm512_unpackhi_epi32(r[0], r[1]);
      const __m512i low23 = _mm512_unpacklo_epi32(r[2], r[3]);
      const __m512i high23 = _mm512_unpackhi_epi32(r[2], r[3]);
      put(0, _mm512_unpacklo_epi64(low01, low23));
      put(1, _mm512_unpackhi_epi64(low01, low23));
      put(2, _mm512_unpacklo_epi64(high01, high23));
      put(3, _mm512_unpackhi_epi64(high01, high23));
    }
  }

 private:
  template <typename Put>
  __attribute__((always_inline)) void two_pairs(__m512i codes, int pair, const Put& put) const {
    __m512i even, odd;
    decoder_.decode(codes, even, odd);
    put(pair, even);
    put(pair + 1, odd);
  }

  struct Nothing {};
  std::conditional_t<type <= DType::kE5M2, Bf16Decoder<type>, Nothing> decoder_;
};

// What is to be fetched while a panel is read. Where rows of B lie one after the other, the next
// panel is fetched in the order of its memory; otherwise each row is followed.
struct Ahead {
  const char* const* rows;  // [kPanelLanes], or null: in order from `next`
  const char* next;
  int64_t offset;

  // What corresponds to the line at `at` bytes of each row.
  void fetch(int64_t at) const {
    for (int64_t i = 0; i < kPanelLanes; ++i) {
      __builtin_prefetch(rows != nullptr ? rows[i] + offset + at : next + at * kPanelLanes + i * 64,
                         0, 2);
    }
  }
};

// dst[0 .. whole / 2)[kPanelLanes] from `count` elements of the rows, zeros after them; whole is a
// multiple of kSegment.
template <DType type>
inline void write_panel(uint32_t* dst, const char* const* rows, int64_t count, int64_t whole,
                        const Ahead& ahead) {
  constexpr int64_t kCodes = PanelWriter<type>::kCodes, kSize = 16 / kCodes;
  const PanelWriter<type> writer;
  const int64_t bytes = count * kSize;
  for (int64_t at = 0; at < whole * kSize; at += 64) {
    RowLines lines;
    if (at + 64 <= bytes) {
      ahead.fetch(at);
      load_lines(rows, at, lines);
    } else {
      alignas(64) char tail[kPanelLanes][64] = {};
      const char* tails[kPanelLanes];
      for (int64_t i = 0; i < kPanelLanes; ++i) {
        if (at < bytes) std::memcpy(tail[i], rows[i] + at, bytes - at);
        tails[i] = tail[i];
      }
      load_lines(tails, 0, lines);
    }
    uint32_t* to = dst + at / kSize / 2 * kPanelLanes;
    for (int part = 0; part < 4; ++part, to += kCodes / 2 * kPanelLanes) {
      writer.pairs(lines[part], [&](int pair, __m512i dwords) {
        _mm512_store_si512(to + pair * kPanelLanes, dwords);
      });
    }
  }
}
