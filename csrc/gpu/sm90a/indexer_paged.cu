#include "gpu/sm90a/indexer_kernel.cuh"

namespace mate::gpu::sm90a {

void launch_paged(const ScoreShape& shape, const ScoreArgs<PagedItems>& args,
                  const Launch& launch) {
  launch_any(shape, args, launch);
}

}  // namespace mate::gpu::sm90a
