// Copies between rows and paged caches.
#pragma once

#include "cache_params.h"

namespace mate::cpu {

void gather_keys(const GatherKeys& p);
void write_rows(const WriteRows& p);

}  // namespace mate::cpu
