// What the entry points of the CPU kernels share: views of arguments, the record of calls, and the
// chosen kernels.
#pragma once

#include "api/count.h"
#include "api/tensors.h"
#include "cpu/isa.h"
#include "params.h"

namespace mate::api {

// The kernels in use; a bad MATE_PLUGIN_ISA becomes a ValueError.
const cpu::Kernels& kernels();

// Raises ValueError where the kernels in use do not read packed weights beside this A.
void require_packed(const GroupedGemm& p);

}  // namespace mate::api
