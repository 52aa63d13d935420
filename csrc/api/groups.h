// Which rows belong to which expert, from the three forms of `ragged_tokens_info`.
#pragma once

#include <vector>

#include "params.h"

namespace mate::api {

enum class GemmMode : int64_t { kPerToken = 0, kPsumExpert = 1, kPerExpert = 2 };

// Groups of the experts that have rows. Contents out of range are never followed: such ids count
// as -1 and ends are cut at `rows`.
struct RaggedGroups {
  RaggedGroups(GemmMode mode, const int32_t* info, int64_t info_stride, int64_t num_experts,
               int64_t rows, int64_t k, int64_t alignment_m);
  std::vector<Group> groups;

 private:
  std::vector<int32_t> sorted_rows_;  // per_token: rows in the order of their experts
};

}  // namespace mate::api
