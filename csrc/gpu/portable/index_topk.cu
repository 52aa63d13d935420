// Scores and selection in one, for a ragged batch and through a buffer of limited size. The host
// does not know how long rows are: it cuts the work as if all of them filled the block table.
#include <algorithm>
#include <atomic>
#include <limits>

#include "gpu/indexer.h"
#include "gpu/launch_kernel.h"
#include "gpu/portable/running.cuh"
#include "gpu/scratch.h"
#include "gpu/topk.h"

namespace mate::gpu {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kRun = 16384;  // tokens scored at a time of rows that do not fit, at least

std::atomic<int64_t> alive{0}, peak{0};

// Memory for logits that is accounted for.
class Logits {
 public:
  Logits(int64_t count, const Launch& launch)
      : bytes_(count * static_cast<int64_t>(sizeof(float))), memory_(bytes_, launch) {
    const int64_t now = alive.fetch_add(bytes_) + bytes_;
    int64_t seen = peak.load();
    while (seen < now && !peak.compare_exchange_weak(seen, now)) {
    }
  }
  ~Logits() { alive.fetch_sub(bytes_); }
  float* data() const { return memory_.at<float>(); }

 private:
  int64_t bytes_;
  Scratch memory_;
};

__device__ int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// One block. first[b] = first row of request b; offsets that fall or lie outside are cut.
__global__ void __launch_bounds__(kThreads)
    find_requests(const int32_t* start, int64_t stride, int64_t requests, int64_t rows,
                  int32_t* first) {
  portable::Running<Larger> largest;
  for (int64_t base = 0; base <= requests; base += kThreads) {
    const int64_t b = base + threadIdx.x;
    const int64_t mine = b <= requests ? clamp(start[b * stride], 0, rows) : 0;
    const int64_t before = largest.before(mine);
    if (b <= requests) first[b] = static_cast<int32_t>(max(before, mine));
  }
}

// What each row sees; rows of no request see nothing.
struct Seen {
  int32_t *request, *tokens;
};

__global__ void __launch_bounds__(kThreads)
    find_seen(const int32_t* first, int64_t requests, const int32_t* lens, int64_t lens_stride,
              int64_t rows, int64_t most, Seen seen) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t r = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; r < rows; r += step) {
    // The last request that starts no later, which may already have ended.
    int64_t low = 0, high = requests;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first[middle] <= r ? low : high) = middle;
    }
    const bool has_request = requests > 0 && first[low] <= r && r < first[low + 1];
    const int64_t tokens =
        has_request ? lens[low * lens_stride] - (first[low + 1] - r) + 1 : int64_t{0};
    seen.request[r] = has_request ? static_cast<int32_t>(low) : 0;
    seen.tokens[r] = static_cast<int32_t>(clamp(tokens, 0, most));
  }
}

// A run of tokens of some rows, whose logits follow `carried` values of the tokens before.
struct Window {
  int64_t rows, token_first, tokens, carried, k;
  const int32_t* seen;  // of the first of the rows

  // Rows that see no more than k tokens take all of them, whatever their logits.
  __device__ int64_t to_score(int64_t r) const {
    return seen[r] <= k ? 0 : clamp(seen[r] - token_first, 0, tokens);
  }
  __device__ bool is_active(int64_t r) const { return token_first == 0 || seen[r] > token_first; }
  // Values to select from.
  __device__ int64_t candidates(int64_t r) const {
    return is_active(r) ? carried + clamp(seen[r] - token_first, 0, tokens) : 0;
  }
};

__global__ void __launch_bounds__(kThreads)
    find_lengths(Window w, int32_t* to_score, int32_t* candidates) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t r = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; r < w.rows;
       r += step) {
    to_score[r] = static_cast<int32_t>(w.to_score(r));
    candidates[r] = static_cast<int32_t>(w.candidates(r));
  }
}

// Positions that were picked among the candidates of a window become tokens, and the values there
// move to the front. Positions ascend, so that none is read after it was written.
__global__ void __launch_bounds__(kThreads)
    carry(Window w, const int32_t* picked, float* values, int64_t value_stride, int32_t* out,
          int64_t out_stride) {
  for (int64_t r = blockIdx.x; r < w.rows; r += gridDim.x) {
    if (!w.is_active(r)) continue;
    for (int64_t base = 0; base < w.k; base += kThreads) {
      const int64_t i = base + threadIdx.x;
      const int64_t at = i < w.k ? picked[r * w.k + i] : -1;
      float value = 0;
      int32_t token = -1;
      if (at >= 0) {
        value = values[r * value_stride + at];
        token = at < w.carried ? out[r * out_stride + at]
                               : static_cast<int32_t>(w.token_first + at - w.carried);
      }
      __syncthreads();
      if (at >= 0) values[r * value_stride + i] = value;
      if (i < w.k) out[r * out_stride + i] = token;
      __syncthreads();
    }
  }
}

class Selection {
 public:
  using Score = void (*)(const PagedScores&, const Launch&);

  Selection(const IndexTopK& p, Score score, const Launch& launch)
      : p_(p),
        score_(score),
        launch_(launch),
        rows_(p.scores.batch),
        most_(p.scores.table_width * p.scores.block_size),
        room_(p.budget / static_cast<int64_t>(sizeof(float))),
        numbers_((4 * rows_ + p.requests + 1) * static_cast<int64_t>(sizeof(int32_t)), launch) {
    auto* numbers = numbers_.at<int32_t>();
    seen_ = {numbers, numbers + rows_};
    to_score_ = numbers + 2 * rows_;
    candidates_ = numbers + 3 * rows_;
    first_ = numbers + 4 * rows_;
  }

  void run() const {
    launch_kernel("find_requests", find_requests, {1, kThreads}, launch_, p_.query_start_loc,
                  p_.start_stride, p_.requests, rows_, first_);
    launch_kernel("find_seen", find_seen, grid_for(rows_), launch_, first_, p_.requests,
                  p_.context_lens, p_.lens_stride, rows_, most_, seen_);
    if (most_ <= p_.k) {
      take_all();
    } else if (most_ <= room_) {
      by_rows();
    } else {
      by_runs();
    }
  }

 private:
  Grid grid_of_blocks(int64_t wanted) const {
    return {std::min<int64_t>(wanted, 4L * launch_.num_sms), kThreads};
  }
  // A thread to a row.
  Grid grid_for(int64_t rows) const { return grid_of_blocks(ceil_div(rows, kThreads)); }

  // The values are not looked at.
  void take_all() const {
    select(seen_.tokens, rows_, nullptr, most_, most_, p_.out, p_.out_stride);
  }

  void by_rows() const {
    const int64_t each = std::min(rows_, room_ / most_);
    const Logits logits(each * most_, launch_);
    for (int64_t r = 0; r < rows_; r += each) {
      const Window w = window(r, std::min(each, rows_ - r), 0, most_);
      score(w, r, logits.data(), most_);
      select(candidates_, w.rows, logits.data(), most_, most_, p_.out + r * p_.out_stride,
             p_.out_stride);
    }
  }

  void by_runs() const {
    const int64_t block = p_.scores.block_size;
    const int64_t least = p_.k + std::max(kRun, 4 * block);
    const int64_t each = std::min(rows_, std::max<int64_t>(room_ / least, 1));
    const int64_t run = (room_ / each - p_.k) / block * block, width = p_.k + run;
    const Logits logits(each * width, launch_);
    const Scratch picked(each * p_.k * static_cast<int64_t>(sizeof(int32_t)), launch_);
    for (int64_t r = 0; r < rows_; r += each) {
      int32_t* out = p_.out + r * p_.out_stride;
      for (int64_t t = 0; t < most_; t += run) {
        const Window w = window(r, std::min(each, rows_ - r), t, std::min(run, most_ - t));
        score(w, r, logits.data() + w.carried, width);
        select(candidates_, w.rows, logits.data(), width, width, picked.at<int32_t>(), p_.k);
        launch_kernel("carry", carry, grid_of_blocks(w.rows), launch_, w, picked.at<int32_t>(),
                      logits.data(), width, out, p_.out_stride);
      }
    }
  }

  Window window(int64_t row, int64_t rows, int64_t token, int64_t tokens) const {
    const Window w{rows, token, tokens, std::min(p_.k, token), p_.k, seen_.tokens + row};
    launch_kernel("find_lengths", find_lengths, grid_for(rows), launch_, w, to_score_, candidates_);
    return w;
  }

  void score(const Window& w, int64_t row, float* logits, int64_t stride) const {
    PagedScores s = p_.scores;
    s.batch = w.rows;
    s.q += row * s.q_request_stride;
    s.weights += row * s.weight_row_stride;
    s.out = logits;
    s.out_stride = stride;
    s.columns = w.tokens;
    s.clean = false;
    s.clean_value = -std::numeric_limits<float>::infinity();
    s.context_lens = to_score_;
    s.lens_per_row = true;
    s.lens_request_stride = 1;
    s.lens_row_stride = 0;
    s.block_table += w.token_first / s.block_size;
    s.table_width -= w.token_first / s.block_size;
    s.request_of = seen_.request + row;
    score_(s, launch_);
  }

  void select(const int32_t* lengths, int64_t rows, const float* values, int64_t stride,
              int64_t columns, int32_t* out, int64_t out_stride) const {
    top_k({values, stride, rows, columns, lengths, 1, nullptr, 0, out, out_stride, p_.k}, launch_);
  }

  const IndexTopK& p_;
  Score score_;
  const Launch& launch_;
  int64_t rows_, most_, room_;  // most_: tokens that a row may see; room_: logits
  Scratch numbers_;
  Seen seen_;
  int32_t *to_score_, *candidates_, *first_;
};

}  // namespace

void index_topk(const IndexTopK& p, void (*score)(const PagedScores&, const Launch&),
                const Launch& launch) {
  if (p.scores.batch == 0 || p.k == 0) return;
  Selection(p, score, launch).run();
}

int64_t logits_peak() { return peak.load(); }

void reset_logits_peak() { peak.store(alive.load()); }

}  // namespace mate::gpu
