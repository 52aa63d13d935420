// Warpgroup products d[64, n] (+)= A[64, 32 bytes] B[n, 32 bytes]^T of tiles in shared memory.
// d: thread t of the warpgroup has rows t / 32 * 16 + t % 32 / 4 (+ 8), of each 8 columns the pair
// t % 4; element 4 j + 2 r + c is row + 8 r, column 8 j + 2 (t % 4) + c.
#pragma once

#include "gpu/sm90a/ptx.cuh"
#include "params.h"

namespace mate::gpu::sm90a {

#define MATE_D4 "%0, %1, %2, %3"
#define MATE_D8 MATE_D4 ", %4, %5, %6, %7"
#define MATE_D16 MATE_D8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MATE_D32 \
  MATE_D16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MATE_D64                                                                     \
  MATE_D32                                                                           \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MATE_D96                                                                     \
  MATE_D64                                                                           \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define MATE_D128                                                                                \
  MATE_D96                                                                                       \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"

#define MATE_SUM4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MATE_SUM8(i) MATE_SUM4(i), MATE_SUM4(i + 4)
#define MATE_SUM16(i) MATE_SUM8(i), MATE_SUM8(i + 8)
#define MATE_SUM32(i) MATE_SUM16(i), MATE_SUM16(i + 16)
#define MATE_SUM64(i) MATE_SUM32(i), MATE_SUM32(i + 32)
#define MATE_SUM96(i) MATE_SUM64(i), MATE_SUM32(i + 64)
#define MATE_SUM128(i) MATE_SUM64(i), MATE_SUM64(i + 64)

// count: registers of d; a_arg, b_arg, add_arg: count, count + 1 and count + 2 as operand names.
#define MATE_PRODUCT(shape, types, count, a_arg, b_arg, add_arg, more)                \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add_arg                        \
               ", 0;\n"                                                               \
               "wgmma.mma_async.sync.aligned." shape ".f32." types " {" MATE_D##count \
               "}, " a_arg ", " b_arg ", add, 1, 1" more ";\n}"                       \
               : MATE_SUM##count(0)                                                   \
               : "l"(a), "l"(b), "r"(add))

// Four of them, each 32 bytes further along k, with their descriptors ready before the first.
#define MATE_FOUR_PRODUCTS(shape, types, count, a_arg, b_arg, add_arg, more) \
  asm volatile(                                                              \
      "{\n.reg .pred add;\n.reg .b64 a1, a2, a3, b1, b2, b3;\n"              \
      "add.s64 a1, " a_arg ", 2;\nadd.s64 b1, " b_arg                        \
      ", 2;\n"                                                               \
      "add.s64 a2, " a_arg ", 4;\nadd.s64 b2, " b_arg                        \
      ", 4;\n"                                                               \
      "add.s64 a3, " a_arg ", 6;\nadd.s64 b3, " b_arg                        \
      ", 6;\n"                                                               \
      "setp.ne.b32 add, " add_arg                                            \
      ", 0;\n"                                                               \
      "wgmma.fence.sync.aligned;\n"                                          \
      "wgmma.mma_async.sync.aligned." shape ".f32." types " {" MATE_D##count \
      "}, " a_arg ", " b_arg ", add, 1, 1" more                              \
      ";\n"                                                                  \
      "wgmma.mma_async.sync.aligned." shape ".f32." types " {" MATE_D##count \
      "}, a1, b1, 1, 1, 1" more                                              \
      ";\n"                                                                  \
      "wgmma.mma_async.sync.aligned." shape ".f32." types " {" MATE_D##count \
      "}, a2, b2, 1, 1, 1" more                                              \
      ";\n"                                                                  \
      "wgmma.mma_async.sync.aligned." shape ".f32." types " {" MATE_D##count \
      "}, a3, b3, 1, 1, 1" more                                              \
      ";\n"                                                                  \
      "wgmma.commit_group.sync.aligned;\n}"                                  \
      : MATE_SUM##count(0)                                                   \
      : "l"(a), "l"(b), "r"(add)                                             \
      : "memory")

#define MATE_PRODUCT_N(MACRO, kind, types, more)                     \
  if constexpr (n == 8) {                                            \
    MACRO("m64n8" kind, types, 4, "%4", "%5", "%6", more);           \
  } else if constexpr (n == 16) {                                    \
    MACRO("m64n16" kind, types, 8, "%8", "%9", "%10", more);         \
  } else if constexpr (n == 32) {                                    \
    MACRO("m64n32" kind, types, 16, "%16", "%17", "%18", more);      \
  } else if constexpr (n == 64) {                                    \
    MACRO("m64n64" kind, types, 32, "%32", "%33", "%34", more);      \
  } else if constexpr (n == 128) {                                   \
    MACRO("m64n128" kind, types, 64, "%64", "%65", "%66", more);     \
  } else if constexpr (n == 192) {                                   \
    MACRO("m64n192" kind, types, 96, "%96", "%97", "%98", more);     \
  } else {                                                           \
    static_assert(n == 256);                                         \
    MACRO("m64n256" kind, types, 128, "%128", "%129", "%130", more); \
  }

#define MATE_PRODUCT_TURNED(types)                       \
  if constexpr (!turned_b) {                             \
    static_assert(!turned_a);                            \
    MATE_PRODUCT_N(MATE_PRODUCT, "k16", types, ", 0, 0") \
  } else if constexpr (turned_a) {                       \
    MATE_PRODUCT_N(MATE_PRODUCT, "k16", types, ", 1, 1") \
  } else {                                               \
    MATE_PRODUCT_N(MATE_PRODUCT, "k16", types, ", 0, 1") \
  }

// a, b: descriptors of rows of 32 bytes along k. add is 0 where d is overwritten. turned_a,
// turned_b: the operand's rows lie along k (16 bits).
template <DType a_type, DType b_type, int n, bool turned_a = false, bool turned_b = false>
__device__ __forceinline__ void multiply(float (&d)[n / 2], uint64_t a, uint64_t b, int add) {
  if constexpr (a_type == DType::kE4M3 && b_type == DType::kE4M3) {
    MATE_PRODUCT_N(MATE_PRODUCT, "k32", "e4m3.e4m3", "")
  } else if constexpr (a_type == DType::kE4M3 && b_type == DType::kE5M2) {
    MATE_PRODUCT_N(MATE_PRODUCT, "k32", "e4m3.e5m2", "")
  } else if constexpr (a_type == DType::kE5M2 && b_type == DType::kE4M3) {
    MATE_PRODUCT_N(MATE_PRODUCT, "k32", "e5m2.e4m3", "")
  } else if constexpr (a_type == DType::kE5M2 && b_type == DType::kE5M2) {
    MATE_PRODUCT_N(MATE_PRODUCT, "k32", "e5m2.e5m2", "")
  } else if constexpr (a_type == DType::kBF16 && b_type == DType::kBF16) {
    MATE_PRODUCT_TURNED("bf16.bf16")
  } else {
    static_assert(a_type == DType::kF16 && b_type == DType::kF16);
    MATE_PRODUCT_TURNED("f16.f16")
  }
}

// The same for rows of 128 bytes along k, as a group of products of its own.
template <DType a_type, DType b_type, int n>
__device__ __forceinline__ void multiply_128(float (&d)[n / 2], uint64_t a, uint64_t b, int add) {
  if constexpr (a_type == DType::kE4M3 && b_type == DType::kE4M3) {
    MATE_PRODUCT_N(MATE_FOUR_PRODUCTS, "k32", "e4m3.e4m3", "")
  } else if constexpr (a_type == DType::kE4M3 && b_type == DType::kE5M2) {
    MATE_PRODUCT_N(MATE_FOUR_PRODUCTS, "k32", "e4m3.e5m2", "")
  } else if constexpr (a_type == DType::kE5M2 && b_type == DType::kE4M3) {
    MATE_PRODUCT_N(MATE_FOUR_PRODUCTS, "k32", "e5m2.e4m3", "")
  } else if constexpr (a_type == DType::kE5M2 && b_type == DType::kE5M2) {
    MATE_PRODUCT_N(MATE_FOUR_PRODUCTS, "k32", "e5m2.e5m2", "")
  } else if constexpr (a_type == DType::kBF16 && b_type == DType::kBF16) {
    MATE_PRODUCT_N(MATE_FOUR_PRODUCTS, "k16", "bf16.bf16", ", 0, 0")
  } else {
    static_assert(a_type == DType::kF16 && b_type == DType::kF16);
    MATE_PRODUCT_N(MATE_FOUR_PRODUCTS, "k16", "f16.f16", ", 0, 0")
  }
}

// The same for 16-bit operands of which B is turned.
template <DType type, int n, bool turned_a>
__device__ __forceinline__ void multiply_turned(float (&d)[n / 2], uint64_t a, uint64_t b,
                                                int add) {
  begin_products();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    multiply<type, type, n, turned_a, true>(d, a + i * (turned_a ? kTurnedStep : 2),
                                            b + i * kTurnedStep, i > 0 ? 1 : add);
  }
  commit_products();
}

#undef MATE_PRODUCT_TURNED
#undef MATE_PRODUCT_N
#undef MATE_FOUR_PRODUCTS
#undef MATE_PRODUCT

}  // namespace mate::gpu::sm90a
