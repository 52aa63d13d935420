// Writing and reading paged caches.
#pragma once

#include "cache_params.h"
#include "gpu/launch.h"

namespace mate::gpu {

void quantise_keys(const QuantiseKeys& p, const Launch& launch);

// p.starts is not used, but the lengths of the requests, each cut to what its table covers.
struct ContextLens {
  const int32_t* data;  // [num_requests]
  int64_t stride;
  int64_t most;
};
void gather_keys(const GatherKeys& p, const ContextLens& lens, const Launch& launch);

void write_rows(const WriteRows& p, const Launch& launch);

}  // namespace mate::gpu
