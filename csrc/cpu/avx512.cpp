#include <immintrin.h>

#define MATE_ISA avx512
#define MATE_SIMD "cpu/simd_avx512.h"
#include "cpu/instance.inl"
