#include <immintrin.h>

#define MATE_ISA avx512_bf16
#define MATE_TILES "cpu/tiles_avx512_bf16.h"
#define MATE_PRODUCTS "cpu/products_avx512_bf16.inl"
#include "cpu/instance_bf16.inl"
