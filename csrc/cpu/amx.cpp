#include <immintrin.h>

#define MATE_ISA amx
#ifndef MATE_TILES
#define MATE_TILES "cpu/tiles_amx.h"
#endif
#include "cpu/instance_bf16.inl"
