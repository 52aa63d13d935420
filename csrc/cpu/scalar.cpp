#define MATE_ISA scalar
#define MATE_SIMD "cpu/simd_scalar.h"
#include "cpu/instance.inl"
