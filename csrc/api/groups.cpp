#include "api/groups.h"

#include <algorithm>

namespace mate::api {

RaggedGroups::RaggedGroups(GemmMode mode, const int32_t* info, int64_t info_stride,
                           int64_t num_experts, int64_t rows, int64_t k, int64_t alignment_m) {
  auto add = [&](int64_t expert, int64_t first, int64_t count, const int32_t* index) {
    if (count > 0) groups.push_back({expert, first, count, index, 0, 0, k, 0});
  };
  if (mode == GemmMode::kPerToken) {
    auto expert_of = [&](int64_t row) -> int64_t {
      int64_t expert = info[row * info_stride];
      return expert < num_experts ? expert : -1;
    };
    std::vector<int64_t> ends(num_experts + 1, 0);
    for (int64_t r = 0; r < rows; ++r) {
      if (expert_of(r) >= 0) ++ends[expert_of(r) + 1];
    }
    for (int64_t e = 0; e < num_experts; ++e) ends[e + 1] += ends[e];
    std::vector<int64_t> next(ends.begin(), ends.end() - 1);
    sorted_rows_.resize(ends[num_experts]);
    for (int64_t r = 0; r < rows; ++r) {
      if (expert_of(r) >= 0) sorted_rows_[next[expert_of(r)]++] = static_cast<int32_t>(r);
    }
    for (int64_t e = 0; e < num_experts; ++e) {
      add(e, 0, ends[e + 1] - ends[e], sorted_rows_.data() + ends[e]);
    }
    return;
  }
  int64_t end = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    int64_t value = info[e * info_stride];
    bool is_end = mode == GemmMode::kPsumExpert;
    int64_t first = is_end ? ceil_div(end, alignment_m) * alignment_m : end;
    end = std::min(is_end ? std::max(value, end) : end + std::max<int64_t>(value, 0), rows);
    add(e, first, end - first, nullptr);
  }
}

}  // namespace mate::api
