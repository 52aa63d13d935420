// What the code of every instruction set needs, included before its namespace opens.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "cache_params.h"
#include "cpu/fp8.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/schedule.h"
#include "indexer_params.h"
#include "mla_params.h"
#include "moe_params.h"
#include "params.h"
#include "piece_params.h"
#include "topk_params.h"

#define MATE_QUOTE_(x) #x
#define MATE_QUOTE(x) MATE_QUOTE_(x)
