#include "cpu/indexer_select.h"

#include <algorithm>
#include <vector>

#include "cpu/indexer_schedule.h"
#include "cpu/logits_buffer.h"

namespace mate::cpu {
namespace {

constexpr int64_t kFloat = sizeof(float);
constexpr int64_t kWorkingBytes = 16 << 20;  // a larger buffer makes nothing faster

// Rows [first, last), scored together into rows of `width` logits.
struct Chunk {
  int64_t first, last, width;
};

class Selection {
 public:
  Selection(const Kernels& kernels, const IndexerTopK& p)
      : kernels_(kernels),
        p_(p),
        room_(std::min(p.budget, kWorkingBytes + p.k * kFloat) / kFloat) {}

  void run() const {
    take_short_rows();
    const std::vector<Chunk> chunks = cut_rows();
    int64_t most = 0;
    for (const Chunk& c : chunks) most = std::max(most, (c.last - c.first) * c.width);
    if (most == 0) return;
    const LogitsBuffer buffer(std::min(most, room_));
    for (const Chunk& c : chunks) {
      if (c.width > room_) {
        select_by_columns(c.first, buffer.data());
      } else {
        select_rows(c, buffer.data());
      }
    }
  }

 private:
  // Rows that see no more than k tokens take them all, whatever their logits.
  bool is_short(int64_t row) const { return p_.rows[row].seen <= p_.k; }

  int32_t* out(int64_t row) const { return p_.out + row * p_.out_stride; }

  void take_short_rows() const {
    std::vector<TopKRow> rows;
    for (int64_t r = 0; r < p_.num_rows; ++r) {
      if (is_short(r)) rows.push_back({nullptr, 0, p_.rows[r].seen, 0, out(r)});
    }
    select(rows, false);
  }

  // As many rows to a chunk as there is room for; one at least, which may be wider than the room.
  std::vector<Chunk> cut_rows() const {
    std::vector<Chunk> chunks;
    for (int64_t r = 0; r < p_.num_rows; ++r) {
      if (is_short(r)) continue;
      const int64_t seen = p_.rows[r].seen;
      if (!chunks.empty()) {
        Chunk& c = chunks.back();
        const int64_t width = std::max(c.width, seen);
        if ((r + 1 - c.first) * width <= room_) {
          c.last = r + 1;
          c.width = width;
          continue;
        }
      }
      chunks.push_back({r, r + 1, seen});
    }
    return chunks;
  }

  void select(const std::vector<TopKRow>& rows, bool carry) const {
    kernels_.top_k(
        {rows.data(), static_cast<int64_t>(rows.size()), p_.k, carry, p_.scores.num_threads});
  }

  // The scores of rows from `first` on, written to rows of `width` logits.
  IndexerScores scores_from(int64_t first, float* logits, int64_t width) const {
    IndexerScores s = p_.scores;
    s.q += first * s.q_stride[1];
    s.weights += first * s.weight_stride[0];
    s.out = logits;
    s.out_stride = s.columns = width;
    return s;
  }

  void select_rows(const Chunk& c, float* logits) const {
    std::vector<TokenRange> ranges;
    std::vector<RowRun> runs;
    std::vector<TopKRow> rows;
    for (int64_t r = c.first; r < c.last; ++r) {
      const SeeingRow& row = p_.rows[r];
      const int64_t i = r - c.first;
      ranges.push_back({0, is_short(r) ? 0 : row.seen, 0});
      if (is_short(r)) continue;
      if (runs.empty() || runs.back().sequence != row.sequence)
        runs.push_back({row.sequence, i, 0});
      runs.back().count = i + 1 - runs.back().first;
      rows.push_back({logits + i * c.width, 0, row.seen, 0, out(r)});
    }
    run_scores(kernels_, scores_from(c.first, logits, c.width), ranges, runs);
    select(rows, false);
  }

  // One row, a run of tokens at a time behind the logits that the runs before have left.
  void select_by_columns(int64_t r, float* logits) const {
    const SeeingRow& row = p_.rows[r];
    const IndexerScores scores = scores_from(r, logits, room_);
    int64_t carried = 0;
    for (int64_t t = 0; t < row.seen;) {
      const int64_t run = (room_ - carried) / kKeyGroup * kKeyGroup;
      const int64_t end = std::min(t + run, row.seen);
      run_scores(kernels_, scores, {{t, end, t - carried}}, {{row.sequence, 0, 1}});
      select({{logits, carried, end - t, static_cast<int32_t>(t), out(r)}}, true);
      carried = std::min(p_.k, carried + end - t);
      t = end;
    }
  }

  const Kernels& kernels_;
  const IndexerTopK& p_;
  const int64_t room_;  // logits
};

}  // namespace

void index_topk(const Kernels& kernels, const IndexerTopK& p) { Selection(kernels, p).run(); }

}  // namespace mate::cpu
