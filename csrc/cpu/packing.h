// Weights as products of BF16 pairs want them: of kPackedRows rows at a time, four bytes of k of
// each, so that 64 bytes hold neighbours in k of all of them. In those 64 bytes come, for each four
// rows, two bytes of k of each of them and then the other two. FP8 codes are decoded to pairs from
// there without a transposition; elements of 16 bits are pairs already.
#pragma once

#include <cstdint>

namespace mate::cpu {

// Rows of `elements` elements of 1 or 2 bytes each; to may be from. Rows come by kPackedRows, and
// their bytes by 4.
void pack_weights(void* to, const void* from, int64_t rows, int64_t elements, int64_t size,
                  int threads);

}  // namespace mate::cpu
