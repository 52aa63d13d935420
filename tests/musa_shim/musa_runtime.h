#pragma once

#include <cuda_runtime.h>

#include "musa_runtime_api.h"
