#include <immintrin.h>

#define MATE_ISA amx
#define MATE_TILES "cpu/tiles_amx.h"
#include "cpu/instance_bf16.inl"
