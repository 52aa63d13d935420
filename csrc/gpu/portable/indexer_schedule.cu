// The split of a paged batch over processors.
#include "gpu/indexer.h"
#include "gpu/launch_kernel.h"
#include "gpu/portable/running.cuh"

namespace mate::gpu {
namespace {

constexpr int kThreads = 512;

struct Split {
  int64_t least, extra;  // segments of a processor; processors that have one more

  __device__ int64_t first(int64_t processor) const {
    return processor * least + min(processor, extra);
  }
  // The first processor that does not start before `segment`, which is no more than all of them.
  __device__ int64_t from(int64_t segment) const {
    const int64_t large = extra * (least + 1);
    if (segment <= large) return ceil_div(segment, least + 1);
    return extra + ceil_div(segment - large, least);
  }
};

__device__ int64_t segments_of(const PagedSchedule& p, int64_t b) {
  int64_t longest = 0;
  for (int64_t j = 0; b < p.batch && j < p.next_n; ++j) {
    const int64_t length = p.context_lens[b * p.lens_stride[0] + j * p.lens_stride[1]];
    longest = max(longest, length);
  }
  return ceil_div(longest, p.segment);
}

__device__ void put(const PagedSchedule& p, int64_t processor, int64_t b, int64_t segment) {
  p.start[processor * p.start_stride] = static_cast<int32_t>(b);
  p.start[processor * p.start_stride + 1] = static_cast<int32_t>(segment);
}

// One block.
__global__ void __launch_bounds__(kThreads) split(PagedSchedule p) {
  portable::Running<Sum> counted, passed;
  for (int64_t base = 0; base < p.batch; base += kThreads) {
    counted.before(segments_of(p, base + threadIdx.x));
  }
  const int64_t all = counted.all();
  const Split split{all / p.processors, all % p.processors};
  for (int64_t base = 0; base < p.batch; base += kThreads) {
    const int64_t b = base + threadIdx.x, segments = segments_of(p, b);
    const int64_t before = passed.before(segments);
    if (segments == 0) continue;
    for (int64_t i = split.from(before); split.first(i) < before + segments; ++i) {
      if (i == p.processors) break;
      put(p, i, b, split.first(i) - before);
    }
  }
  for (int64_t i = threadIdx.x; i <= p.processors; i += kThreads) {
    if (split.first(i) >= all) put(p, i, p.batch, 0);
  }
}

}  // namespace

void split_segments(const PagedSchedule& p, const Launch& launch) {
  launch_kernel("paged_mqa_metadata", split, {1, kThreads}, launch, p);
}

}  // namespace mate::gpu
