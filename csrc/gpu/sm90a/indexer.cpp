// Host side of the indexer's scores on Hopper: which calls fit, tensor maps and shapes.
#include "gpu/indexer.h"

#include <algorithm>

#include "gpu/sm90a/indexer_args.h"
#include "gpu/sm90a/tensor_map.h"

namespace mate::gpu {
namespace sm90a {
namespace {

constexpr int64_t kMost = int64_t{1} << 30;  // rows, tokens: sums of two are still 32-bit numbers

int row_heads(int64_t heads) { return heads <= 32 ? 32 : heads <= 64 ? 64 : 128; }

// Strides of dimensions of size 1 say nothing.
TensorBox queries_box(const Scores& p, int64_t rows, int64_t row_stride) {
  const int64_t head_stride = p.heads > 1 ? p.q_head_stride : 0;
  return {p.q,
          DType::kE4M3,
          p.depth,
          p.heads,
          rows,
          head_stride,
          rows > 1 ? row_stride : 0,
          static_cast<int>(p.depth),
          row_heads(p.heads)};
}

int64_t row_stride(const PagedScores& p) {
  return p.next_n > 1 ? p.q_row_stride : p.q_request_stride;
}

TensorBox queries_box(const PagedScores& p) {
  return queries_box(p, p.batch * p.next_n, row_stride(p));
}
TensorBox queries_box(const FlatScores& p) { return queries_box(p, p.rows, p.q_row_stride); }

TensorBox keys_box(const PagedScores& p) {
  return {p.cache,
          DType::kE4M3,
          p.depth,
          p.block_size,
          p.num_blocks,
          p.depth,
          p.num_blocks > 1 ? p.block_stride : 0,
          static_cast<int>(p.depth),
          kTileTokens};
}
TensorBox keys_box(const FlatScores& p) {
  const int64_t stride = p.tokens > 1 ? p.k_row_stride : 0;
  return {p.k,        DType::kE4M3, p.depth, p.tokens, 1, stride, 0, static_cast<int>(p.depth),
          kTileTokens};
}

TensorBox scales_box(const PagedScores& p) {
  const int64_t stride = p.num_blocks > 1 ? p.block_stride : 0;
  return {p.cache + p.block_size * p.depth,
          DType::kF32,
          p.block_size,
          1,
          p.num_blocks,
          0,
          stride,
          kTileTokens,
          1,
          false};
}
TensorBox scales_box(const FlatScores& p) {
  return {p.k_scale, DType::kF32, p.tokens, 1, 1, 0, 0, kTileTokens, 1, false};
}

// What stands against both forms.
template <typename Form>
const char* unfit(const Form& p) {
  if (p.q_type != DType::kE4M3) return "queries are not e4m3";
  if (p.depth != 32 && p.depth != 64 && p.depth != 128) return "D is not 32, 64 or 128";
  if (p.heads == 0 || p.columns == 0) return "there is nothing to score";
  if (p.heads > 128) return "there are more than 128 heads";
  const TensorBox q = queries_box(p);
  if (q.z >= kMost) return "there are 2^30 query rows or more";
  if (q.y_stride > 0 && q.y_stride < p.depth) return "heads of q overlap";
  if (q.z > 1 && q.z_stride < (p.heads - 1) * q.y_stride + p.depth) return "rows of q overlap";
  if (!is_aligned(q) || !is_aligned(keys_box(p)) || !is_aligned(scales_box(p))) {
    return "an address or a stride of q, of keys or of their scales is not a multiple of 16 bytes";
  }
  return nullptr;
}

template <typename Items, typename Form>
ScoreArgs<Items> score_args(const Form& p, const Items& items, bool keys_once) {
  ScoreArgs<Items> args{};
  args.queries = tensor_map(queries_box(p));
  args.keys = tensor_map(keys_box(p));
  args.key_scales = tensor_map(scales_box(p));
  args.items = items;
  args.weights = p.weights;
  args.weight_row_stride = p.weight_row_stride;
  args.weight_head_stride = p.weight_head_stride;
  args.heads = static_cast<int>(p.heads);
  args.depth = static_cast<int>(p.depth);
  args.keys_once = keys_once;
  args.out = p.out;
  args.out_stride = p.out_stride;
  args.columns = p.columns;
  args.clean = p.clean;
  args.clean_value = p.clean_value;
  return args;
}

int64_t most_tokens(const PagedScores& p) {
  return std::min(p.columns, p.table_width * p.block_size);
}

// For a batch of rows of which those of a request may follow each other. The host does not know:
// few are mostly one of each request, many are those of prompts.
ScoreShape merged_shape(int64_t heads, int64_t rows) {
  constexpr int64_t kFew = 64, kMany = 1024;
  if (rows <= kFew) return score_shape(heads, 1);
  return score_shape(heads, rows >= kMany ? rows : 4);
}

}  // namespace

ScoreShape score_shape(int64_t heads, int64_t rows) {
  constexpr int kColumns = 128;  // of a product, at most
  const int each = row_heads(heads);
  if (rows * each > 2 * kColumns) return {kColumns, 1, each, true};
  if (rows * each > kColumns) return {kColumns, 2, each, false};
  int columns = each;
  while (columns < rows * each) columns *= 2;
  return {columns, 1, each, false};
}

}  // namespace sm90a

const char* sm90a_paged_unfit(const PagedScores& p) {
  if (p.batch == 0 || p.next_n == 0 || p.num_blocks == 0) return "there is nothing to score";
  if (p.block_size < sm90a::kTileTokens) return "blocks have fewer than 64 tokens";
  if (p.num_blocks > INT_MAX || p.block_size >= sm90a::kMost ||
      sm90a::most_tokens(p) >= sm90a::kMost) {
    return "a request may have 2^30 tokens or more";
  }
  if (p.batch > 1 && p.next_n > 1 && p.q_request_stride != p.next_n * p.q_row_stride) {
    return "rows of q are not evenly apart";
  }
  return sm90a::unfit(p);
}

const char* sm90a_flat_unfit(const FlatScores& p) {
  if (p.k_type != DType::kE4M3) return "keys are not e4m3";
  if (p.rows == 0 || p.tokens == 0) return "there is nothing to score";
  if (p.tokens >= sm90a::kMost) return "there are 2^30 tokens or more";
  if (p.tokens > 1 && p.k_row_stride < p.depth) return "keys overlap";
  if (p.tokens > 1 && p.k_scale_stride != 1) return "scales of keys are not contiguous";
  return sm90a::unfit(p);
}

void sm90a_paged_scores(const PagedScores& p, const Launch& launch) {
  const bool merges = p.request_of != nullptr && p.next_n == 1;
  const sm90a::ScoreShape shape =
      merges ? sm90a::merged_shape(p.heads, p.batch) : sm90a::score_shape(p.heads, p.next_n);
  sm90a::PagedItems items{};
  items.rows = static_cast<int>(p.batch * p.next_n);
  items.rows_per_item = shape.item_rows();
  items.next_n = static_cast<int>(p.next_n);
  items.items_per_request = static_cast<int>(ceil_div(p.next_n, items.rows_per_item));
  items.count = static_cast<int>(p.batch) * items.items_per_request;
  items.context_lens = p.context_lens;
  items.lens_per_row = p.lens_per_row;
  items.lens_request_stride = p.lens_request_stride;
  items.lens_row_stride = p.lens_row_stride;
  items.block_table = p.block_table;
  items.table_stride = p.table_stride;
  items.request_of = p.request_of;
  items.merges = merges;
  if (merges) {
    items.lens_per_row = true;
    items.lens_row_stride = p.lens_request_stride;
  }
  items.plain = !merges && items.items_per_request == 1 && (!p.lens_per_row || p.next_n == 1);
  items.num_blocks = static_cast<int>(p.num_blocks);
  while (int64_t{1} << items.block_bits < p.block_size) ++items.block_bits;
  items.most = static_cast<int>(sm90a::most_tokens(p));
  const bool keys_once = !merges && items.items_per_request == 1;
  sm90a::launch_paged(shape, sm90a::score_args(p, items, keys_once), launch);
}

void sm90a_flat_scores(const FlatScores& p, const Launch& launch) {
  const sm90a::ScoreShape shape = sm90a::score_shape(p.heads, p.rows);
  sm90a::FlatItems items{};
  items.rows = static_cast<int>(p.rows);
  items.rows_per_item = shape.item_rows();
  items.count = static_cast<int>(ceil_div(p.rows, items.rows_per_item));
  items.first = p.first;
  items.end = p.end;
  items.first_stride = p.first_stride;
  items.end_stride = p.end_stride;
  items.tokens = static_cast<int>(p.tokens);
  items.columns = p.columns;
  items.compressed = p.compressed;
  sm90a::launch_flat(shape, sm90a::score_args(p, items, items.count == 1), launch);
}

}  // namespace mate::gpu
