// Entry point of a whole MoE layer: routing, then one call. Arguments were checked in Python
// (mate_plugin/kernels/fused_moe.py).
#include <algorithm>
#include <numeric>
#include <vector>

#include "api/choices.h"
#include "api/entry.h"
#include "api/operands.h"
#include "cpu/route.h"
#include "moe_params.h"

namespace mate::api {
namespace {

// Sums of this many rows stay in cache for a block of columns; more tokens go in several passes.
constexpr int64_t kRowsAtOnce = 16384;

// Sorted rows of some tokens, and the groups that gate, up and down multiply.
struct SortedRows {
  std::vector<int32_t> slot_of, counts, ends, expert_of_row, row_of_slot, tokens;
  std::vector<Group> entering, leaving;
  int64_t num_rows = 0;

  // `first` is the number of the first token.
  SortedRows(const Choices& choices, int64_t first, int64_t num_experts, int64_t hidden,
             int64_t inner)
      : slot_of(choices.num_tokens * choices.topk),
        counts(num_experts),
        ends(num_experts),
        expert_of_row(slot_of.size()),
        row_of_slot(slot_of.size()) {
    const auto slots = static_cast<int64_t>(slot_of.size());
    cpu::route(choices, {slot_of.data(), counts.data(), ends.data(), expert_of_row.data(),
                         row_of_slot.data(), slots, num_experts, 1, 0});
    num_rows = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    tokens.resize(num_rows);
    for (int64_t i = 0; i < num_rows; ++i) {
      tokens[i] = static_cast<int32_t>(first + slot_of[i] / choices.topk);
    }
    for (int64_t e = 0; e < num_experts; ++e) {
      if (counts[e] == 0) continue;
      const int64_t row = ends[e] - counts[e];
      entering.push_back({e, 0, counts[e], tokens.data() + row, 0, 0, hidden, 0});
      leaving.push_back({e, row, counts[e], nullptr, 0, 0, inner, 0});
    }
  }
};

// The same operand, `rows` further on, with scales of their own for what is skipped.
void skip_rows(GroupedGemm& p, int64_t rows) {
  p.b.data = static_cast<const char*>(p.b.data) + rows * p.b.row_stride * size_of(p.b.type);
  if (p.b_scale.data == nullptr) return;
  p.b_scale.data += ceil_div(rows, p.b_scale.row_block) * p.b_scale.row_stride;
}

void fused_experts(TensorView hidden, OptionalTensor hidden_scale, TensorView topk_ids,
                   OptionalTensor topk_weights, TensorView w13, OptionalTensor w13_scale,
                   TensorView w2, OptionalTensor w2_scale, OptionalTensor expert_map,
                   TensorView out, int64_t block_n, int64_t block_k, double limit, bool rounds,
                   int64_t type_tag, int64_t hidden_tag, int64_t weights_tag, int64_t w13_tag,
                   int64_t w2_tag, int64_t out_tag, int64_t num_threads, int64_t /*stream*/) {
  MATE_COUNT_CALL("fused_experts");
  const int64_t num_tokens = topk_ids.size(0), topk = topk_ids.size(1);
  const int64_t inner = weight_rows(w13, 3) / 2;
  FusedExperts p{};
  p.gate = problem(operand(hidden, hidden_tag), weights(w13, w13_tag, 3),
                   scales(hidden_scale, 1, block_k), scales(w13_scale, block_n, block_k), inner);
  p.down = problem({}, weights(w2, w2_tag, 3), {}, scales(w2_scale, block_n, block_k),
                   weight_rows(w2, 3));
  p.gate.num_threads = p.down.num_threads = static_cast<int>(num_threads);
  p.up = p.gate;
  skip_rows(p.up, inner);
  require_packed(p.gate);
  p.limit = swiglu_limit(limit);
  p.type = dtype(type_tag);
  p.rounds = rounds;
  p.quantises = hidden_scale.has_value();
  p.topk = topk;

  const int64_t at_once = std::max<int64_t>(1, kRowsAtOnce / std::max<int64_t>(1, topk));
  for (int64_t token = 0; token < num_tokens; token += at_once) {
    Choices choices = expert_choices(topk_ids, expert_map);
    choices.num_tokens = std::min(at_once, num_tokens - token);
    choices.ids = static_cast<const char*>(choices.ids) +
                  token * choices.row_stride * (choices.is_64_bit ? 8 : 4);
    const SortedRows rows(choices, token, w13.size(0), hidden.size(1), inner);
    p.gate.groups = p.up.groups = rows.entering.data();
    p.down.groups = rows.leaving.data();
    p.gate.num_groups = p.up.num_groups = p.down.num_groups =
        static_cast<int64_t>(rows.entering.size());
    p.num_rows = rows.num_rows;
    p.row_of = rows.row_of_slot.data();
    p.weights = slot_weights(topk_weights, weights_tag);
    if (p.weights.data != nullptr) {
      p.weights.data = static_cast<const char*>(p.weights.data) +
                       token * p.weights.row_stride * size_of(p.weights.type);
    }
    p.out = matrix(out, out_tag);
    p.out.data = static_cast<char*>(p.out.data) + token * p.out.row_stride * size_of(p.out.type);
    p.num_tokens = choices.num_tokens;
    kernels().fused_experts(p);
  }
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(fused_experts, fused_experts);

}  // namespace
}  // namespace mate::api
