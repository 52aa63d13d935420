// The k largest values of rows. A random sample gives a value that slightly more than k reach
// (Floyd and Rivest's SELECT), one pass collects those, and a radix selection among them is exact.
// Where the sample misleads, the radix selection reads the whole row.

constexpr int64_t kSample = 1024;
constexpr int64_t kSpare = 8192;    // candidates at most, beside 4 k
constexpr int64_t kStretch = 1024;  // columns between looks at the number of candidates
constexpr float kSmallestNormal = 0x1p-126f;
constexpr int64_t kThreadColumns = 1 << 14;  // pay for waking a thread

// Candidates are values not less than `least`, at most `most`; 0: there are none to be had.
struct Sieve {
  float least;
  int64_t most;
};

// A stretch of columns, and the positions of the candidates found in it.
struct Sifted {
  int64_t first, last;
  int32_t* positions;
  int64_t count;
};

inline int64_t width(const TopKRow& row) { return row.carried + row.columns; }

// An upper bound, nearly always, of a count of random events whose mean is x.
inline int64_t bound_of_count(double x) { return static_cast<int64_t>(x + 3 * std::sqrt(x)) + 3; }

inline int64_t room_for(int64_t most) { return most + kStretch + kLanes; }

// One column at random of each of `sample` equal stretches: even steps would follow any period.
Sieve make_sieve(const float* values, int64_t n, int64_t k) {
  const int64_t sample = std::min(kSample, n / 8);
  const int64_t rank = bound_of_count(static_cast<double>(sample) * k / n);
  if (2 * rank > sample) return {0, 0};
  const uint64_t step = n / sample;
  uint32_t keys[kSample];
  for (int64_t i = 0; i < sample; ++i) {
    const uint64_t random = static_cast<uint32_t>(i + 1) * 2654435761u;
    keys[i] = order_key(values[i * step + (random * step >> 32)]);
  }
  const Cut cut = find_cut(keys, sample, rank);
  const int64_t most = std::min(bound_of_count(rank) * n / sample, 4 * k + kSpare);
  return {value_of_key(cut.key), most};
}

// Writes the positions in [first, last) of values not less than `least` and returns how many.
inline int64_t sift(const float* values, int64_t first, int64_t last, float least,
                    int32_t* positions) {
  const Vec cut = set1(least);
  int32_t* to = positions;
  int64_t i = first;
  // Without a branch for vectors that have none: one in two guesses would be wrong.
  for (; i + kLanes <= last; i += kLanes) {
    to += put_lanes(to, not_less(load(values + i), cut), static_cast<int32_t>(i));
  }
  for (; i < last; ++i) {
    *to = static_cast<int32_t>(i);
    to += !(values[i] < least);
  }
  return to - positions;
}

// Stops soon after there are more than `most`.
inline void collect(const TopKRow& row, const Sieve& sieve, Sifted& part) {
  part.count = 0;
  for (int64_t i = part.first; i < part.last && part.count <= sieve.most; i += kStretch) {
    part.count += sift(row.values, i, std::min(i + kStretch, part.last), sieve.least,
                       part.positions + part.count);
  }
}

// Takes positions of a row, in ascending order: reading is never behind writing.
struct Taker {
  const TopK& p;
  const TopKRow& row;
  Cut cut;
  int64_t count;

  bool full() const { return count == p.k; }

  void put(int64_t position) {
    row.out[count] = position < row.carried
                         ? row.out[position]
                         : row.first + static_cast<int32_t>(position - row.carried);
    if (p.carry) row.values[count] = row.values[position];
  }

  // Without branches: which of many equal values are taken is hard to predict.
  void offer(int64_t position, float value) {
    const uint32_t key = order_key(value);
    const bool is_equal = (key == cut.key) & (cut.equal > 0);
    put(position);
    count += (key > cut.key) | is_equal;
    cut.equal -= is_equal;
  }

  // Takes of n values those that the cut lets through. The i-th is at positions[i], or at i.
  void take(const float* values, const int32_t* positions, int64_t n) {
    const float least = value_of_key(cut.key);
    // Comparisons of floats may let more through: all that is not less than NaN, and where
    // denormals are flushed to zero these beside each other.
    const bool all = cut.all && std::fabs(least) >= kSmallestNormal;
    int32_t passed[kStretch + kLanes];
    for (int64_t first = 0; first < n && !full(); first += kStretch) {
      const int64_t num_passed = sift(values, first, std::min(first + kStretch, n), least, passed);
      for (int64_t j = 0; j < num_passed && !full(); ++j) {
        const int64_t position = positions == nullptr ? passed[j] : positions[passed[j]];
        if (all) {
          put(position);
          ++count;
        } else {
          offer(position, values[passed[j]]);
        }
      }
    }
  }
};

inline void take_all(const TopKRow& row) {
  for (int64_t i = 0; i < row.columns; ++i) {
    row.out[row.carried + i] = row.first + static_cast<int32_t>(i);
  }
}

// `values` and `keys` are room for `total` each.
void take_candidates(Taker& taker, const Sifted* parts, int64_t num_parts, int64_t total,
                     float* values, uint32_t* keys) {
  float* value = values;
  for (int64_t j = 0; j < num_parts; ++j) {
    for (int64_t i = 0; i < parts[j].count; ++i) *value++ = taker.row.values[parts[j].positions[i]];
  }
  for (int64_t i = 0; i < total; ++i) keys[i] = order_key(values[i]);
  taker.cut = find_cut(keys, total, taker.p.k);
  for (int64_t j = 0; j < num_parts; ++j) {
    taker.take(values, parts[j].positions, parts[j].count);
    values += parts[j].count;
  }
}

void take_from_all(Taker& taker) {
  taker.cut = find_cut(taker.row.values, width(taker.row), taker.p.k);
  taker.take(taker.row.values, nullptr, width(taker.row));
}

// Selects from what the parts of one row hold, or from all of it where that is too few or many.
// `words` has room for two to each candidate.
void finish(const TopK& p, const TopKRow& row, const Sieve& sieve, const Sifted* parts,
            int64_t num_parts, int32_t* words) {
  int64_t count = width(row);
  if (count <= p.k) {
    take_all(row);
  } else {
    int64_t total = 0;
    for (int64_t j = 0; j < num_parts; ++j) total += parts[j].count;
    Taker taker{p, row, {0, 0, false}, 0};
    if (total >= p.k && total <= sieve.most) {
      take_candidates(taker, parts, num_parts, total, reinterpret_cast<float*>(words),
                      reinterpret_cast<uint32_t*>(words + total));
    } else {
      take_from_all(taker);
    }
    count = p.k;
  }
  std::fill(row.out + count, row.out + p.k, -1);
}

inline Sieve sieve_of(const TopK& p, const TopKRow& row) {
  return width(row) > p.k ? make_sieve(row.values, width(row), p.k) : Sieve{0, 0};
}

inline int32_t* words(int64_t count) {
  return static_cast<int32_t*>(scratch(count * sizeof(int32_t)));
}

void top_k_of_row(const TopK& p, const TopKRow& row) {
  const Sieve sieve = sieve_of(p, row);
  const int64_t room = room_for(sieve.most);
  int32_t* positions = words(room + 2 * sieve.most);
  Sifted part{0, width(row), positions, 0};
  if (sieve.most > 0) collect(row, sieve, part);
  finish(p, row, sieve, &part, 1, positions + room);
}

// A row in equal parts, and the scratch for their positions and then for their values and keys.
struct Search {
  Sieve sieve;
  int64_t room, first_word;
};

// Few long rows, each cut into parts. What the threads find is in the calling thread's scratch.
void top_k_in_parts(const TopK& p, int64_t num_parts, int threads) {
  std::vector<Search> searches(p.num_rows);
  parallel_for(p.num_rows, threads, [&](int64_t r) { searches[r].sieve = sieve_of(p, p.rows[r]); });
  int64_t num_words = 0;
  for (int64_t r = 0; r < p.num_rows; ++r) {
    Search& s = searches[r];
    s.room = room_for(std::min(s.sieve.most, ceil_div(width(p.rows[r]), num_parts)));
    s.first_word = num_words;
    num_words += num_parts * s.room + 2 * s.sieve.most;
  }
  int32_t* buffer = words(num_words);
  std::vector<Sifted> parts(p.num_rows * num_parts);
  parallel_for(p.num_rows * num_parts, threads, [&](int64_t i) {
    const int64_t r = i / num_parts, j = i % num_parts, n = width(p.rows[r]);
    const Search& s = searches[r];
    int32_t* positions = buffer + s.first_word + j * s.room;
    parts[i] = {n * j / num_parts, n * (j + 1) / num_parts, positions, 0};
    if (s.sieve.most > 0) collect(p.rows[r], s.sieve, parts[i]);
  });
  parallel_for(p.num_rows, threads, [&](int64_t r) {
    const Search& s = searches[r];
    finish(p, p.rows[r], s.sieve, &parts[r * num_parts], num_parts,
           buffer + s.first_word + num_parts * s.room);
  });
}

void top_k(const TopK& p) {
  int64_t columns = 0;
  for (int64_t r = 0; r < p.num_rows; ++r) columns += width(p.rows[r]);
  const int64_t useful = 1 + columns / kThreadColumns;
  const int threads = static_cast<int>(std::min<int64_t>(p.num_threads, useful));
  if (threads > 1 && p.num_rows < 2 * threads) {
    return top_k_in_parts(p, ceil_div(2 * threads, p.num_rows), threads);
  }
  parallel_for(p.num_rows, threads, [&](int64_t r) { top_k_of_row(p, p.rows[r]); });
}
