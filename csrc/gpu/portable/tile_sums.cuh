// Sums of products of 16 x 16 tiles by a warp, as the device makes them best.
#pragma once

#ifdef MATE_MUSA
#include "gpu/musa/tile_sums.cuh"
#else
#include "gpu/cuda/tile_sums.cuh"
#endif
