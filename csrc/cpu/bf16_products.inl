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
};

// c += s * acc, for one row and one group of columns.
inline void add_scaled(const Bf16Tile& t, int64_t m, int64_t group, int64_t segment, __m512 acc) {
  __m512 scale = _mm512_set1_ps(t.scale[m * t.scale_stride + segment]);
  if (t.col_scale != nullptr) {
    const float* by_col = t.col_scale + segment * kPanelCols + group * kPanelLanes;
    scale = _mm512_mul_ps(scale, _mm512_loadu_ps(by_col));
  }
  float* c = t.c + m * t.ldc + group * kPanelLanes;
  _mm512_storeu_ps(c, _mm512_fmadd_ps(acc, scale, _mm512_loadu_ps(c)));
}
