#include "gpu/gemm.h"

#include <algorithm>
#include <cmath>

#include "gpu/sm90a/gemm_args.h"
#include "gpu/sm90a/gemm_k_major.h"

namespace mate::gpu {
namespace {

using sm90a::is_aligned;

bool is_fp8(DType type) { return type <= DType::kE5M2; }
bool is_mixed(const Gemm& p) {
  return is_fp8(p.a.type) && !(p.a.type == DType::kE4M3 && p.b.type == DType::kE4M3);
}

bool is_w8a16(const Gemm& p) { return !is_fp8(p.a.type) && is_fp8(p.b.type); }

// Whether the rows of an operand lie along k.
bool is_turned(const Operand& x) { return x.k_stride != 1; }

bool is_ragged_k(const Gemm& p) { return p.rows.mode == RowMode::kRaggedK; }

int64_t row_planes(const Rows& rows) { return sm90a::is_batched(rows) ? rows.num_groups : 1; }
int64_t b_planes(const Rows& rows) { return rows.mode == RowMode::kRaggedK ? 1 : rows.num_groups; }

// Elements of a K-major row, which holds the groups' ranges of k in whole blocks.
int64_t k_extent(const Gemm& p) {
  return is_ragged_k(p) ? p.scale_blocks * sm90a::kScaleBlock : p.k;
}
int64_t num_scale_blocks(const Gemm& p) {
  return is_ragged_k(p) ? p.scale_blocks : ceil_div(p.k, sm90a::kScaleBlock);
}

// Strides of elements to bytes.
sm90a::TensorBox box(sm90a::TensorBox of_elements) {
  of_elements.y_stride *= size_of(of_elements.type);
  of_elements.z_stride *= size_of(of_elements.type);
  return of_elements;
}

// Blocks of 128 of k or one for all of it.
bool has_block_scales(const Gemm& p) {
  if (is_ragged_k(p)) return p.a_scale.data != nullptr || p.b_scale.data != nullptr;
  return (p.a_scale.data != nullptr && p.a_scale.k_block < p.k) ||
         (p.b_scale.data != nullptr && p.b_scale.k_block < p.k);
}

// A scale of B for each column and block of k.
bool has_column_scales(const Gemm& p) {
  return has_block_scales(p) && p.b_scale.data != nullptr && p.b_scale.row_block == 1;
}

bool is_more_than_product(const Output& out) {
  return out.accumulate || out.c.data != nullptr || out.divisor != nullptr ||
         out.scale != nullptr || is_fp8(out.type);
}

const char* layout_unfit(const Gemm& p) {
  const bool a = is_turned(p.a), b = is_turned(p.b);
  if (p.b.packed || (a && p.a.row_stride != 1) || (b && p.b.row_stride != 1)) {
    return "an operand is contiguous along neither of its dimensions";
  }
  if (is_ragged_k(p) && !(a && b)) return "rows of one element are summed over";
  if (is_ragged_k(p) && is_w8a16(p)) return "rows that are summed over are of 16 bits and FP8";
  if (!is_fp8(p.a.type) && a && !is_ragged_k(p)) return "rows of a 16-bit A lie along k";
  if (!is_aligned(a ? sm90a::turned_a_box(p, 1, 1) : sm90a::a_box(p, 1, 1)) ||
      !is_aligned(b ? sm90a::turned_b_box(p, 1, 1) : sm90a::b_box(p, 1, 1))) {
    return "an address or a row of an operand is not a multiple of 16 bytes";
  }
  return nullptr;
}

}  // namespace

const char* sm90a_gemm_unfit(const Gemm& p) {
  const DType a = p.a.type, b = p.b.type;
  const bool wide = a == DType::kBF16 || a == DType::kF16;
  if (!(is_fp8(a) && is_fp8(b)) && !(wide && (a == b || is_fp8(b)))) {
    return "operands are neither both FP8 nor of one 16-bit type nor 16-bit rows with FP8 weights";
  }
  if (p.n == 0 || p.k == 0 || p.rows.rows == 0 || p.rows.num_groups == 0)
    return "nothing to multiply";
  if (p.rows.mode == RowMode::kPerToken && p.rows.alignment % 64 != 0) {
    return "rows of experts may come in any order (alignment_m below 64)";
  }
  // As many as the tables in shared memory have room for.
  if (p.rows.num_groups > (has_column_scales(p) ? 320 : 512) && p.rows.mode != RowMode::kBatched) {
    return "there are more than 512 experts (320 with scales by column)";
  }
  if (p.rows.rows >= int64_t{1} << 30 || p.n >= int64_t{1} << 30 || p.k >= int64_t{1} << 30) {
    return "a size is 2^30 or more";
  }
  if (is_ragged_k(p) && p.scale_blocks >= int64_t{1} << 23) return "a size is 2^30 or more";
  if (const char* unfit = layout_unfit(p)) return unfit;
  if ((!is_fp8(a) && p.a_scale.data != nullptr) || (!is_fp8(b) && p.b_scale.data != nullptr)) {
    return "16-bit operands come with scales";
  }
  if (wide && has_column_scales(p)) return "FP8 weights beside 16 bits have scales by column";
  if (has_block_scales(p)) {
    if ((p.a_scale.data != nullptr && p.a_scale.k_block != 128) ||
        (p.b_scale.data != nullptr && p.b_scale.k_block != 128)) {
      return "scales are not by 128 of k";
    }
    if (p.b_scale.data != nullptr && p.b_scale.row_block % 128 != 0 && p.b_scale.row_block != 1 &&
        p.b_scale.row_block < p.n) {
      return "scales of B are by neither one nor 128 rows";
    }
  } else if (p.b_scale.data != nullptr && p.b_scale.row_block > 1 &&
             p.b_scale.row_block % 128 != 0 && p.b_scale.row_block < p.n) {
    return "scales of B are not by 128 rows";
  }
  if (p.out.c.data != nullptr && p.out.c.k_stride != 1) return "columns of the addend lie apart";
  if (p.out.type == DType::kE5M2) return "the output is e5m2";
  return nullptr;
}

void sm90a_gemm(const Gemm& p, const Launch& launch) {
  if (is_fp8(p.b.type) && (is_turned(p.a) || is_turned(p.b))) {
    const sm90a::KMajor memory(p, launch);
    return sm90a_gemm(memory.gemm(), launch);
  }
  if (is_w8a16(p)) return sm90a::gemm_w8a16(p, launch);
  if (is_turned(p.b)) return sm90a::gemm_turned(p, launch);
  if (has_column_scales(p)) return sm90a::gemm_columns(p, launch);
  if (is_more_than_product(p.out)) return sm90a::gemm_finishing(p, launch);
  if (is_mixed(p)) return sm90a::gemm_mixed_fp8(p, launch);
  if (!is_fp8(p.a.type)) return sm90a::gemm_16bit(p, launch);
  const sm90a::Split split = sm90a::split_of(p, launch.num_sms);
  if (split.parts > 0) return sm90a::gemm_split(p, split, launch);
  sm90a::gemm_e4m3(p, launch);
}

SignalUnits sm90a_signal_units(const Gemm& p, const Launch& launch) {
  if (has_column_scales(p)) return sm90a::kColumnsTile;
  const bool k_major = !is_turned(p.a) && !is_turned(p.b);
  if (is_w8a16(p) || is_more_than_product(p.out) || !(k_major || is_fp8(p.b.type))) {
    return sm90a::kFormTile;
  }
  const sm90a::TileCost& form = sm90a::cost_of(sm90a::tile_form(p, launch.num_sms));
  return {form.rows, form.cols};
}

namespace sm90a {

TensorBox a_box(const Gemm& p, int x, int rows) {
  const Operand& a = p.a;
  return box({a.data, a.type, k_extent(p), p.rows.rows, row_planes(p.rows), a.row_stride,
              a.group_stride, x, rows});
}

TensorBox b_box(const Gemm& p, int x, int rows) {
  const Operand& b = p.b;
  return box(
      {b.data, b.type, k_extent(p), p.n, b_planes(p.rows), b.row_stride, b.group_stride, x, rows});
}

TensorBox turned_a_box(const Gemm& p, int rows, int k) {
  const Operand& a = p.a;
  return box(
      {a.data, a.type, p.rows.rows, p.k, row_planes(p.rows), a.k_stride, a.group_stride, rows, k});
}

TensorBox turned_b_box(const Gemm& p, int rows, int k) {
  const Operand& b = p.b;
  return box({b.data, b.type, p.n, p.k, b_planes(p.rows), b.k_stride, b.group_stride, rows, k});
}

TensorBox out_box(const Gemm& p, int x, int rows) {
  const Output& out = p.out;
  return box({out.data, out.type, p.n, p.rows.rows, row_planes(p.rows), out.row_stride,
              out.group_stride, x, rows});
}

ScaleCopy scale_copy(const Gemm& p) {
  const Scales &a = p.a_scale, &b = p.b_scale;
  if (a.data == nullptr || b.data == nullptr) return ScaleCopy::kWords;
  const bool b_fits =
      has_column_scales(p)
          ? b.row_stride == 1 && is_aligned(b_column_scale_box(p, 1, 1))
          : b.row_block == 128 && b.k_stride == 1 && is_aligned(b_scale_box(p, 1, 1));
  if (!b_fits) return ScaleCopy::kWords;
  if (a.k_stride == 1 && !is_ragged_k(p) && is_aligned(a_scale_box(p, 1, 1, true))) {
    return ScaleCopy::kBoxesAlongK;
  }
  // Boxes start at multiples of 16 bytes.
  const bool aligned_rows = is_batched(p.rows) || is_ragged_k(p) ||
                            (p.rows.mode != RowMode::kPerExpert && p.rows.alignment % 4 == 0);
  if (a.row_stride == 1 && aligned_rows && is_aligned(a_scale_box(p, 1, 1, false))) {
    return ScaleCopy::kBoxesAlongRows;
  }
  return ScaleCopy::kWords;
}

TensorBox a_scale_box(const Gemm& p, int x, int y, bool along_k) {
  const Scales& a = p.a_scale;
  const int64_t blocks = num_scale_blocks(p), rows = p.rows.rows;
  return box({a.data, DType::kF32, along_k ? blocks : rows, along_k ? rows : blocks,
              row_planes(p.rows), along_k ? a.row_stride : a.k_stride, a.group_stride, x, y,
              false});
}

TensorBox b_scale_box(const Gemm& p, int x, int y) {
  const Scales& b = p.b_scale;
  return box({b.data, DType::kF32, ceil_div(p.k, 128), ceil_div(p.n, 128), p.rows.num_groups,
              b.row_stride, b.group_stride, x, y, false});
}

TensorBox b_column_scale_box(const Gemm& p, int x, int y) {
  const Scales& b = p.b_scale;
  return box({b.data, DType::kF32, p.n, num_scale_blocks(p), b_planes(p.rows), b.k_stride,
              b.group_stride, x, y, false});
}

ScaleMode scale_mode(const Gemm& p) {
  if (!is_fp8(p.a.type)) return ScaleMode::kNone;
  if (has_column_scales(p)) return ScaleMode::kColumns;
  return has_block_scales(p) ? ScaleMode::kBlocks : ScaleMode::kEnd;
}

namespace {

// Tiles of so many rows in all groups. The host knows neither counts nor ends: groups are taken to
// be alike, their last block half full, or to differ by three tenths from what the caller expects.
double row_tiles(const Rows& rows, int tile_rows) {
  const double groups = static_cast<double>(rows.num_groups);
  if (rows.mode == RowMode::kMasked && rows.expected > 0) {
    double tiles = 0;
    for (double share : {0.7, 0.85, 1.0, 1.15, 1.3}) {
      const double count = std::min(share * rows.expected, static_cast<double>(rows.rows));
      tiles += groups / 5 * std::ceil(count / tile_rows);
    }
    return tiles;
  }
  if (is_batched(rows)) return groups * static_cast<double>(ceil_div(rows.rows, tile_rows));
  const double used = static_cast<double>(rows.rows) / groups - 0.5 * (rows.alignment - 1);
  return groups * std::max(1.0, used / tile_rows + 0.5);
}

// Cycles as in TileCost, of tiles that are split; parts cost a meeting, and each after the second
// something more. Their kernels start sooner than the others, so that a tile costs less than
// nothing. kBusy: as much of all multiprocessors keeps memory busy.
struct SplitCost {
  int rows;
  double step, tile, meeting;
};
constexpr SplitCost kSplitCosts[] = {{64, 400, -3000, 3500}, {128, 540, -700, 8700}};
constexpr double kFurtherPart = 1500, kBusy = 0.45;

double cycles(const Gemm& p, const TileCost& form, int num_sms) {
  const double tiles =
      row_tiles(p.rows, form.rows) * static_cast<double>(ceil_div(p.n, form.cols * form.cluster));
  const double at_once = std::max(1, num_sms / form.cluster);
  // Tiles that are not all known come out between whole rounds.
  const double rounds = is_batched(p.rows) && p.rows.expected == 0
                            ? std::ceil(tiles / at_once)
                            : std::max(1.0, tiles / at_once + 0.5);
  const double steps = static_cast<double>(ceil_div(p.k * size_of(p.a.type), 128));
  return rounds * (steps * form.step + form.tile);
}

}  // namespace

TileForm tile_form(const Gemm& p, int num_sms) {
  if (is_mixed(p)) return TileForm::kWide;
  TileForm best = TileForm::kSmall;
  double least = cycles(p, cost_of(best), num_sms);
  for (TileForm form : {TileForm::kNarrow, TileForm::kWide, TileForm::kTall, TileForm::kPairs}) {
    // Scales of rows and columns at the end leave two blocks of rows too few registers.
    if (form == TileForm::kPairs && scale_mode(p) == ScaleMode::kEnd) continue;
    const double took = cycles(p, cost_of(form), num_sms);
    if (took < least) least = took, best = form;
  }
  return best;
}

Split split_of(const Gemm& p, int num_sms) {
  Split best{0, 0};
  if (p.rows.mode != RowMode::kBatched || scale_mode(p) != ScaleMode::kBlocks ||
      p.signal.data != nullptr) {
    return best;
  }
  double least = cycles(p, cost_of(tile_form(p, num_sms)), num_sms);
  // Parts begin where slots of scales do.
  const int64_t slots = ceil_div(p.k, kScaleSteps * kScaleBlock);
  for (const SplitCost& cost : kSplitCosts) {
    const int64_t tiles =
        p.rows.num_groups * ceil_div(p.rows.rows, cost.rows) * ceil_div(p.n, kSplitCols);
    for (int parts = 1; parts <= std::min<int64_t>(kMostParts, slots); ++parts) {
      if (tiles > num_sms / parts || tiles * (parts - 1) > kBusy * num_sms) break;
      if (parts > 1 && tiles > clusters_at_once(parts)) break;
      const double steps = static_cast<double>(ceil_div(slots, parts)) * kScaleSteps;
      const double met = parts > 1 ? cost.meeting + (parts - 2) * kFurtherPart : 0;
      const double took = steps * cost.step + cost.tile + met;
      if (took < least) least = took, best = {cost.rows, parts};
    }
  }
  return best;
}

}  // namespace sm90a
}  // namespace mate::gpu
