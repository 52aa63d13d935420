// Where products of BF16 pairs find B: kPanelLanes rows of it, read by lines of 64 bytes of each,
// as pairs (k, k + 1) of all rows side by side.

constexpr int64_t kSegment = 128, kPanelLanes = 16;
static_assert(kPanelLanes == kPackedRows);
constexpr int64_t kLineBytes = 64;

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

template <DType type>
constexpr bool kIsCoded = type <= DType::kE5M2;

// Turns 64 bytes, four of each row as packing.h tells, into pairs. A loop keeps one beside its
// source: tables in its registers.
template <DType type>
class ToPairs {
 public:
  static constexpr int kPairs = kIsCoded<type> ? 2 : 1;

  __attribute__((always_inline)) void operator()(__m512i bytes, __m512i (&pairs)[kPairs]) const {
    if constexpr (kIsCoded<type>) {
      decoder_.decode(bytes, pairs[0], pairs[1]);
    } else {
      pairs[0] = bytes;
    }
  }

 private:
  struct Nothing {};
  std::conditional_t<kIsCoded<type>, Bf16Decoder<type>, Nothing> decoder_;
};

// Elements in 16 bytes, of which a line has four parts.
template <DType type>
constexpr int64_t kPartElements = 16 / size_of(type);

// Rows as they lie in memory.
template <DType type>
class RowSource {
 public:
  using Lines = RowLines;
  static constexpr bool kPacked = false;

  const char* rows[kPanelLanes];
  // What is fetched while rows are read: where they lie one after the other in memory, the next
  // ones from `next` on in their order; else (null) each of these is followed, `far` bytes ahead.
  const char* next;
  int64_t far;

  void skip(int64_t k) {
    for (const char*& row : rows) row += k * size_of(type);
  }

  // The line at `at` bytes of each row.
  void load(int64_t at, Lines& lines) const {
    for (int64_t i = 0; i < kPanelLanes; ++i) {
      const char* wanted =
          next != nullptr ? next + at * kPanelLanes + i * kLineBytes : rows[i] + far + at;
      __builtin_prefetch(wanted, 0, 2);
    }
    load_lines(rows, at, lines);
  }

  // The same where only `left` bytes of it are there, in a buffer of zeros.
  void load_end(int64_t at, int64_t left, char* zeros, Lines& lines) const {
    const char* copies[kPanelLanes];
    for (int64_t i = 0; i < kPanelLanes; ++i) {
      char* copy = zeros + i * kLineBytes;
      if (left > 0) std::memcpy(copy, rows[i] + at, left);
      copies[i] = copy;
    }
    load_lines(copies, 0, lines);
  }

  // 16 bytes of each row, by four bytes, as ToPairs takes them.
  __attribute__((always_inline)) void part(const Lines& lines, int part, __m512i (&to)[4]) const {
    const __m512i(&r)[4] = lines[part];
    if constexpr (kIsCoded<type>) {
      const __m512i low01 = _mm512_unpacklo_epi16(r[0], r[1]);
      const __m512i high01 = _mm512_unpackhi_epi16(r[0], r[1]);
      const __m512i low23 = _mm512_unpacklo_epi16(r[2], r[3]);
      const __m512i high23 = _mm512_unpackhi_epi16(r[2], r[3]);
      to[0] = _mm512_unpacklo_epi32(low01, low23);
      to[1] = _mm512_unpackhi_epi32(low01, low23);
      to[2] = _mm512_unpacklo_epi32(high01, high23);
      to[3] = _mm512_unpackhi_epi32(high01, high23);
    } else {
      const __m512i low01 = _mm512_unpacklo_epi32(r[0], r[1]);
      const __m512i high01 = _mm512_unpackhi_epi32(r[0], r[1]);
      const __m512i low23 = _mm512_unpacklo_epi32(r[2], r[3]);
      const __m512i high23 = _mm512_unpackhi_epi32(r[2], r[3]);
      to[0] = _mm512_unpacklo_epi64(low01, low23);
      to[1] = _mm512_unpackhi_epi64(low01, low23);
      to[2] = _mm512_unpacklo_epi64(high01, high23);
      to[3] = _mm512_unpackhi_epi64(high01, high23);
    }
  }
};

// Rows that were packed: one stream, without a transposition.
template <DType type>
class PackedSource {
 public:
  struct Lines {
    const char* from;
  };
  static constexpr bool kPacked = true;

  const char* panel;
  int64_t far;  // bytes from what is read to what is fetched

  void skip(int64_t k) { panel += k * size_of(type) * kPanelLanes; }

  void load(int64_t at, Lines& lines) const { lines.from = panel + at * kPanelLanes; }

  void load_end(int64_t at, int64_t left, char* zeros, Lines& lines) const {
    if (left > 0) std::memcpy(zeros, panel + at * kPanelLanes, left * kPanelLanes);
    lines.from = zeros;
  }

  __attribute__((always_inline)) void part(const Lines& lines, int part, __m512i (&to)[4]) const {
    for (int i = 0; i < 4; ++i) {
      const char* from = lines.from + (part * 4 + i) * kLineBytes;
      to[i] = _mm512_loadu_si512(from);
      __builtin_prefetch(from + far, 0, 2);
    }
  }
};
