// Radix selection: floats as integers of the same order, and the k-th largest of them by counting
// digits from the top, each pass within the range that the one before left.

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr int kCounters = 4;  // of each digit, so that equal digits in a row do not wait

// NaN is above all else, zeros are equal.
inline uint32_t order_key(float x) {
  uint32_t bits = float_to_bits(x);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  bits = bits == 0x80000000 ? 0 : bits;
  bits ^= static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000;
  return is_nan ? 0xffffffff : bits;
}

inline float value_of_key(uint32_t key) {
  return bits_to_float(key >> 31 ? key ^ 0x80000000 : ~key);
}

// What to take: keys above `key`, and the first `equal` of those at it; all of them where no key is
// left out that is not below.
struct Cut {
  uint32_t key;
  int64_t equal;
  bool all;
};

// Adds the keys in [low, low + span] to the counts of their digits above `shift`.
inline void count_digits(const uint32_t* keys, int64_t n, uint32_t low, uint32_t span, int shift,
                         uint32_t (&counts)[kCounters][kDigits]) {
  for (int64_t i = 0; i < n; i += kCounters) {
    for (int c = 0; c < kCounters && i + c < n; ++c) {
      const uint32_t above = keys[i + c] - low;
      if (above <= span) ++counts[c][above >> shift];
    }
  }
}

// The cut that takes the k largest of all keys, of which there are at least k > 0. Calls
// each_run(f) once for each pass, and that f(keys, n) for each run of keys.
template <typename EachRun>
inline Cut find_cut(const EachRun& each_run, int64_t k) {
  uint32_t low = 0xffffffff, high = 0;
  each_run([&](const uint32_t* keys, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      low = std::min(low, keys[i]);
      high = std::max(high, keys[i]);
    }
  });
  bool all = false;
  while (low < high && !all) {
    const uint32_t span = high - low;
    const int shift = std::max(0, 32 - __builtin_clz(span) - kDigitBits);
    uint32_t counts[kCounters][kDigits] = {};
    each_run(
        [&](const uint32_t* keys, int64_t n) { count_digits(keys, n, low, span, shift, counts); });
    int digit = kDigits - 1;
    int64_t count;
    for (;; --digit) {
      count = 0;
      for (const auto& counter : counts) count += counter[digit];
      if (k <= count) break;
      k -= count;
    }
    const uint32_t offset = static_cast<uint32_t>(digit) << shift;
    low += offset;
    high = low + std::min(span - offset, (1u << shift) - 1);
    all = k == count;
  }
  return {low, k, all};
}

// The same of keys that are in the first cache: counting those above a middle takes a fraction of
// a cycle for each, so that halving the range is faster than counting digits.
inline Cut find_cut(const uint32_t* keys, int64_t n, int64_t k) {
  uint32_t low = 0xffffffff, high = 0;
  for (int64_t i = 0; i < n; ++i) {
    low = std::min(low, keys[i]);
    high = std::max(high, keys[i]);
  }
  auto count_from = [&](uint32_t least) {
    uint32_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += keys[i] >= least;
    return static_cast<int64_t>(count);
  };
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2 + 1;
    const int64_t count = count_from(middle);
    if (count == k) return {middle, k, true};
    (count > k ? low : high) = count > k ? middle : middle - 1;
  }
  const int64_t above = low == 0xffffffff ? 0 : count_from(low + 1);
  return {low, k - above, count_from(low) == k};
}

// The same of the keys of values.
inline Cut find_cut(const float* values, int64_t n, int64_t k) {
  constexpr int64_t kRun = 1024;
  uint32_t keys[kRun];
  return find_cut(
      [&](const auto& f) {
        for (int64_t first = 0; first < n; first += kRun) {
          const int64_t count = std::min(kRun, n - first);
          for (int64_t i = 0; i < count; ++i) keys[i] = order_key(values[first + i]);
          f(keys, count);
        }
      },
      k);
}
