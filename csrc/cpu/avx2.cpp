#include <immintrin.h>

#define MATE_ISA avx2
#define MATE_SIMD "cpu/simd_avx2.h"
#include "cpu/instance.inl"
