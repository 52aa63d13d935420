#include <immintrin.h>

#define MATE_ISA amx
#define MATE_TILES "cpu/tiles_amx.h"
#define MATE_PRODUCTS "cpu/products_amx.inl"
#include "cpu/instance_bf16.inl"
