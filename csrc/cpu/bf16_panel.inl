// Panels of B for products of BF16 pairs: kPanelLanes rows of B side by side, dst[k / 2][row] holds
// elements k and k + 1 of a row. FP8 codes are exact in BF16: two look-ups give both bytes, NaN and
// subnormals included.

constexpr int64_t kSegment = 128, kPanelLanes = 16;
constexpr int kTileGroups = 2;
constexpr int64_t kPanelCols = kTileGroups * kPanelLanes;

// 16 bytes of each of 16 rows: lane i of group j holds row 4 i + j.
inline void load_rows(const char* const* rows, int64_t offset, __m512i (&group)[4]) {
  for (int j = 0; j < 4; ++j) {
    auto part = [&](int i) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[4 * i + j] + offset));
    };
    __m512i all = _mm512_castsi128_si512(part(0));
    all = _mm512_inserti64x2(all, part(1), 1);
    all = _mm512_inserti64x2(all, part(2), 2);
    group[j] = _mm512_inserti64x2(all, part(3), 3);
  }
}

// Turns rows of B into panel rows, 16 bytes of each at a time.
template <DType type>
class PanelWriter {
 public:
  static constexpr int64_t kCodes = type <= DType::kE5M2 ? 16 : 8;  // in 16 bytes

  PanelWriter() {
    if constexpr (type <= DType::kE5M2) {
      static constexpr Bf16Codes<type> kTable;
      for (int i = 0; i < 2; ++i) {
        high_[i] = _mm512_load_si512(kTable.high + 64 * i);
        low_[i] = _mm512_load_si512(kTable.low + 64 * i);
      }
    }
  }

  // Calls put(pair, dwords) for the kCodes / 2 pairs at `offset` bytes of the 16 rows.
  template <typename Put>
  __attribute__((always_inline)) void pairs(const char* const* rows, int64_t offset,
                                            const Put& put) const {
    __m512i r[4];
    load_rows(rows, offset, r);
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
    __m512i high = _mm512_permutex2var_epi8(high_[0], codes, high_[1]);
    const __m512i low = _mm512_permutex2var_epi8(low_[0], codes, low_[1]);
    // high | (codes & sign)
    high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
    put(pair, _mm512_unpacklo_epi8(low, high));
    put(pair + 1, _mm512_unpackhi_epi8(low, high));
  }

  __m512i high_[2], low_[2];
};

// What is to be fetched while a panel is read: `lines` cache lines for each step of 64 bytes of it.
// Where rows of B lie one after the other, the rows of the next panel are fetched in their order,
// which the memory likes best.
struct Ahead {
  const char* const* rows;  // [kPanelLanes] each row further on, or null: in order from `next`
  const char* next;
  int64_t offset;

  void fetch(int64_t at) const {
    for (int64_t i = 0; i < kPanelLanes; ++i) {
      const char* line = rows != nullptr ? rows[i] + offset + at : next + at * kPanelLanes + i * 64;
      __builtin_prefetch(line, 0, 2);
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
  auto convert = [&](const char* const* from, int64_t offset, int64_t k) {
    writer.pairs(from, offset, [&](int pair, __m512i dwords) {
      _mm512_store_si512(dst + (k / 2 + pair) * kPanelLanes, dwords);
    });
  };
  int64_t k = 0;
  for (; k + kCodes <= count; k += kCodes) {
    if (k * kSize % 64 == 0) ahead.fetch(k * kSize);
    convert(rows, k * kSize, k);
  }
  if (k < count) {
    alignas(16) char tail[kPanelLanes][16] = {};
    const char* tails[kPanelLanes];
    for (int64_t i = 0; i < kPanelLanes; ++i) {
      std::memcpy(tail[i], rows[i] + k * kSize, (count - k) * kSize);
      tails[i] = tail[i];
    }
    convert(tails, 0, k);
    k += kCodes;
  }
  if (k < whole) std::memset(dst + k / 2 * kPanelLanes, 0, (whole - k) * kPanelLanes * 2);
}
