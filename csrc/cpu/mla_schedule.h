// How attention over selected rows is cut into units of work.
#pragma once

#include <vector>

#include "mla_params.h"

namespace mate::cpu {

// Fills p.num_threads, p.num_parts and returns p.units. How the selections of a token are cut into
// segments follows from that token alone: so do the bits of its result.
std::vector<MlaUnit> mla_units(SparseMla& p);

}  // namespace mate::cpu
