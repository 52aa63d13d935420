#include <immintrin.h>

#define MATE_ISA amx
#include "cpu/instance_bf16.inl"
