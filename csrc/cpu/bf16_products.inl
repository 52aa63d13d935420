// Sums of products of BF16 pairs. Scales come in after every kSegment of k: c += s * (a . b), in
// float32, in the same order for one result whatever else is computed beside it.

// What a tile multiplies: rows of A (BF16, lda apart), a panel of B in groups of columns
// (group_stride dwords apart), and their scales.
struct Bf16Tile {
  const uint16_t* a;
  int64_t lda;
  const uint32_t* b;
  int64_t group_stride;
  int64_t segments;
  const float* scale;  // [rows, scale_stride] one for each segment
  int64_t scale_stride;
  const float* col_scale;  // [segments, kPanelCols] another one for each column, or null
  float* c;                // [rows, ldc]
  int64_t ldc;

  // The same for rows from m on.
  Bf16Tile from_row(int64_t m) const {
    Bf16Tile other = *this;
    other.a += m * lda;
    other.scale += m * scale_stride;
    other.c += m * ldc;
    return other;
  }

  // The same for segments from s on; the panel stays.
  Bf16Tile from_segment(int64_t s) const {
    Bf16Tile other = *this;
    other.a += s * kSegment;
    other.segments -= s;
    other.scale += s;
    if (col_scale != nullptr) other.col_scale += s * kPanelCols;
    return other;
  }
};

// One row and group of columns of c, to which scaled sums are added; written back at the end.
class ScaledSum {
 public:
  ScaledSum(const Bf16Tile& t, int64_t m, int64_t group)
      : scale_(t.scale + m * t.scale_stride),
        by_col_(t.col_scale == nullptr ? nullptr : t.col_scale + group * kPanelLanes),
        c_(t.c + m * t.ldc + group * kPanelLanes),
        sum_(_mm512_loadu_ps(c_)) {}
  ~ScaledSum() { _mm512_storeu_ps(c_, sum_); }
  ScaledSum(const ScaledSum&) = delete;
  ScaledSum& operator=(const ScaledSum&) = delete;

  void add(int64_t segment, __m512 products) {
    __m512 scale = _mm512_set1_ps(scale_[segment]);
    if (by_col_ != nullptr) {
      scale = _mm512_mul_ps(scale, _mm512_loadu_ps(by_col_ + segment * kPanelCols));
    }
    sum_ = _mm512_fmadd_ps(products, scale, sum_);
  }

 private:
  const float *scale_, *by_col_;
  float* c_;
  __m512 sum_;
};
