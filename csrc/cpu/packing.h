// Weights as the kernels read them fastest: of kPackedRows rows at a time, four bytes of k of each,
// so that 64 bytes hold neighbours in k of all of them.
#pragma once

#include <cstdint>

namespace mate::cpu {

// How four FP8 codes of each row lie in those 64 bytes. Elements of 16 bits are pairs already.
enum class PackedOrder {
  kPairs,  // of each four rows two codes, and then the other two: what decoding to BF16 pairs wants
  kBytes,  // one row after the other
};

// Whether a NaN is among e4m3 codes.
bool has_nan_codes(const void* codes, int64_t count, int threads);

// Rows of `elements` elements of 1 or 2 bytes each; to may be from. Rows come by kPackedRows, and
// their bytes by 4.
void pack_weights(void* to, const void* from, int64_t rows, int64_t elements, int64_t size,
                  PackedOrder order, int threads);

}  // namespace mate::cpu
