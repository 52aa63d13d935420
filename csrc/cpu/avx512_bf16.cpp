#include <immintrin.h>

#define MATE_ISA avx512_bf16
#include "cpu/instance_bf16.inl"
