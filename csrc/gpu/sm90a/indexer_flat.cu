#include "gpu/sm90a/indexer_kernel.cuh"

namespace mate::gpu::sm90a {

void launch_flat(const ScoreShape& shape, const ScoreArgs<FlatItems>& args, const Launch& launch) {
  launch_any(shape, args, launch);
}

}  // namespace mate::gpu::sm90a
