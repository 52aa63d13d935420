// Arguments of the lightning indexer's scores as plain structs. Strides count bytes where they say
// so, elements elsewhere.
#pragma once

#include <cstdint>

#include "params.h"

namespace mate {

// Where the key rows of a sequence are. Paged: token t of sequence s is row t % block_size of block
// block_table[s * table_stride + t / block_size]. Without a table there is one block: a flat array.
struct Keys {
  const char* codes;
  DType type;
  int64_t row_stride;  // bytes
  const char* scales;  // float32, not necessarily aligned
  int64_t scale_stride;
  int64_t block_size, num_blocks;
  int64_t block_stride;        // bytes, from block to block of both codes and scales
  const int32_t* block_table;  // [batch, table_width] or null
  int64_t table_stride;
};

// Tokens that one query row sees; the logit of token t goes to column t - shift. Others are left
// alone or filled with the clean value.
struct TokenRange {
  int64_t first, end, shift;
};

// Scores of one block of work: query rows of one sequence against a run of its tokens.
struct ScoreUnit {
  int64_t sequence;
  int64_t row_first, rows;  // within the sequence
  int64_t token_first, token_end;
};

// logits[s * rows + j, t - shift] =
//     k_scale[t] * sum_h weights[s * rows + j, h] * relu(sum_d q[s, j, h, d] * k[t, d])
struct IndexerScores {
  const char* q;  // [batch, rows, heads, depth], last dimension contiguous
  DType q_type;
  int64_t q_stride[3];  // bytes
  // rows is 0 where units number the rows through all sequences (and q_stride[0] is 0).
  int64_t batch, rows, heads, depth;
  const float* weights;  // [batch * rows, heads]
  int64_t weight_stride[2];
  Keys keys;
  float* out;  // [batch * rows, columns], last dimension contiguous
  int64_t out_stride, columns;
  bool clean;  // fill columns of no visible token
  float clean_value;
  const TokenRange* ranges;  // [batch * rows]
  const ScoreUnit* units;
  int64_t num_units;
  int num_threads;
};

// Key rows are fetched in groups that never straddle two blocks; a block holds whole groups.
constexpr int64_t kKeyGroup = 16;

}  // namespace mate
