// Quantisation of one group of columns by a team of threads.
#pragma once

#include "gpu/swiglu.cuh"
#include "gpu/units.cuh"

namespace mate::gpu {

// Magnitudes compared as integers, so that NaN is larger than any other.
template <int n>
__device__ inline uint32_t largest_bits(uint32_t most, const float (&v)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) most = max(most, __float_as_uint(v[i]) & 0x7fffffff);
  return most;
}

// Over `team` consecutive lanes, a power of two up to a warp.
__device__ inline uint32_t largest_of_team(uint32_t most, int team) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    if (team > step) most = max(most, __shfl_xor_sync(kAllLanes, most, step));
  }
  return most;
}

// max(amax, least) / largest code, or the power of two above; NaN and infinity stay.
template <DType code>
__device__ inline float group_scale(uint32_t most, float least, bool power_of_two) {
  float amax = __uint_as_float(most);
  if (amax < least) amax = least;
  const float scale = amax / Fp8<code>::kLargest;
  const uint32_t bits = __float_as_uint(scale);
  if (!power_of_two || bits >= 0x7f800000) return scale;
  return __uint_as_float((bits + 0x007fffff) & 0xff800000);
}

// Quotients by one scale, as the rounding to FP8 sees them. A product with the correctly rounded
// inverse and one correction (Markstein) can differ from a division only within 2^-23 units in the
// last place of the middle of two floats, where no quotient beside a boundary between codes is, or
// far below the smallest code. With these signs a zero keeps its own.
class ByScale {
 public:
  __device__ explicit ByScale(float scale) {
    // Of an infinite scale finite values become zeros and infinities NaN.
    const bool infinite = scale == __uint_as_float(0x7f800000);
    scale_ = infinite ? 0.0f : scale;
    inverse_ = infinite ? 0.0f : 1.0f / scale;
  }
  __device__ float operator()(float x) const {
    const float q = x * inverse_;
    return fmaf(fmaf(q, scale_, -x), -inverse_, q);
  }

 private:
  float scale_, inverse_;
};

// What a team of threads, a power of two, quantises: `count` columns from element `from` of the
// source on, to codes from element `to` of q on.
struct Group {
  int64_t from, to, count;
  int lane, team;
};

// Columns go by vectors of n, of which a thread keeps the first kHeld and reads others twice.
// largest_of(bits) is the largest of the team; put_scale(scale) stores the scale.
template <DType type, DType code, bool gated, int n, int kHeld, typename LargestOf,
          typename PutScale>
__device__ inline void quantise_group(const Source& in, const Group& g, void* q, float least,
                                      bool power_of_two, const LargestOf& largest_of,
                                      const PutScale& put_scale) {
  // Those that threads keep can be counted in 32 bits.
  const int near = g.count < INT32_MAX ? static_cast<int>(g.count) : INT32_MAX;
  Input<type, gated, n> held[kHeld];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int i = (g.lane + h * g.team) * n;
    if (i < near) held[h].load(in, g.from + i);
  }
  float v[kHeld][n];
  uint32_t most = 0;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    held[h].floats(in, v[h]);
    most = largest_bits(most, v[h]);
  }
  auto each_other = [&](auto f) {
    for (int64_t i = (g.lane + kHeld * g.team) * n; i < g.count; i += g.team * n) {
      Input<type, gated, n> other;
      float values[n];
      other.load(in, g.from + i);
      other.floats(in, values);
      f(i, values);
    }
  };
  each_other([&](int64_t, const float (&values)[n]) { most = largest_bits(most, values); });
  const float scale = group_scale<code>(largest_of(most), least, power_of_two);
  if (g.lane == 0 && g.count > 0) put_scale(scale);
  const ByScale by_scale(scale);
  auto put = [&](int64_t i, const float (&values)[n]) {
    float quotients[n];
#pragma unroll
    for (int j = 0; j < n; ++j) quotients[j] = by_scale(values[j]);
    store_columns<code>(q, g.to + i, quotients);
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int i = (g.lane + h * g.team) * n;
    if (i < near) put(i, v[h]);
  }
  each_other(put);
}

}  // namespace mate::gpu
