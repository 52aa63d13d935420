// e^x within 1.1 units in the last place, for all x: x = n ln2 + r, and the power of two at the end
// so that results reach from the subnormals to infinity.
inline Vec exponential(Vec x) {
  // Beyond these the result is 0 or infinite; the order of operands lets NaN pass.
  x = minimum(set1(89.0f), maximum(set1(-104.0f), x));
  Vec n = nearest(mul(x, set1(1.44269504f)));
  Vec r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  // Minimax of (e^r - 1 - r) / r^2 on |r| <= ln2 / 2.
  Vec q = fma(set1(0x1.6a2256p-10f), r, set1(0x1.123b02p-7f));
  q = fma(q, r, set1(0x1.5558f8p-5f));
  q = fma(q, r, set1(0x1.55549p-3f));
  q = fma(q, r, set1(0x1.fffffcp-2f));
  return times_power(fma(mul(r, r), q, add(r, set1(1.0f))), n);
}
