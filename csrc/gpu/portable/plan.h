// Where the rows of each group are, found on the device from the contents of Rows::info.
#pragma once

#include <optional>

#include "gpu/gemm.h"
#include "gpu/scratch.h"

namespace mate::gpu::portable {

// As mate::Group: rows [first, first + count), or sorted_rows[first + i] with an index.
struct GroupRows {
  int64_t first, count;
  int64_t k_first, k, k_block_first;
};

// Tiles of rows, group after group. Without arrays each group is `whole`.
struct Plan {
  int64_t num_groups;
  GroupRows whole;
  int64_t whole_tiles;         // of a group, where tile_first is null
  const int64_t* tile_first;   // [num_groups + 1] tiles of the groups before, or null
  const GroupRows* groups;     // [num_groups]
  const int32_t* sorted_rows;  // rows in the order of their groups, or null
  int64_t most_tiles;          // that there can be
};

// Queues the making of a plan, whose memory lives until everything queued before its end has run.
class PlanMemory {
 public:
  PlanMemory(const Gemm& p, int64_t tile_rows, const Launch& launch);
  const Plan& plan() const { return plan_; }

 private:
  std::optional<Scratch> memory_;
  Plan plan_;
};

}  // namespace mate::gpu::portable
