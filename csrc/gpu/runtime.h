// Names of the runtime, which run in parallel: CUDA's, or with MATE_MUSA those of Moore Threads.
#pragma once

#ifdef MATE_MUSA
#include <musa_runtime_api.h>
#define MATE_RUNTIME(name) musa##name
#else
#include <cuda_runtime_api.h>
#define MATE_RUNTIME(name) cuda##name
#endif

namespace mate::gpu {

using Stream = MATE_RUNTIME(Stream_t);

}  // namespace mate::gpu
