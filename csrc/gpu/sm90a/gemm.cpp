#include "gpu/gemm.h"

#include <algorithm>
#include <cmath>

#include "gpu/sm90a/gemm_args.h"

namespace mate::gpu {
namespace {

using sm90a::is_aligned;

bool is_fp8(DType type) { return type <= DType::kE5M2; }

int64_t row_planes(const Rows& rows) { return sm90a::is_batched(rows) ? rows.num_groups : 1; }

// Strides of elements to bytes.
sm90a::TensorBox box(sm90a::TensorBox of_elements) {
  of_elements.y_stride *= size_of(of_elements.type);
  of_elements.z_stride *= size_of(of_elements.type);
  return of_elements;
}

// Blocks of 128 of k or one for all of it.
bool has_block_scales(const Gemm& p) {
  return (p.a_scale.data != nullptr && p.a_scale.k_block < p.k) ||
         (p.b_scale.data != nullptr && p.b_scale.k_block < p.k);
}

}  // namespace

const char* sm90a_gemm_unfit(const Gemm& p) {
  const DType a = p.a.type, b = p.b.type;
  if (!(is_fp8(a) && is_fp8(b)) && !(a == b && (a == DType::kBF16 || a == DType::kF16))) {
    return "operands are neither both FP8 nor of one 16-bit type";
  }
  if (p.rows.mode == RowMode::kRaggedK) return "the product runs over rows of both operands";
  if (p.n == 0 || p.k == 0 || p.rows.rows == 0 || p.rows.num_groups == 0)
    return "nothing to multiply";
  if (p.rows.mode == RowMode::kPerToken && p.rows.alignment % 64 != 0) {
    return "rows of experts may come in any order (alignment_m below 64)";
  }
  if (p.rows.num_groups > 512 && p.rows.mode != RowMode::kBatched) {
    return "there are more than 512 experts";
  }
  if (p.rows.rows >= int64_t{1} << 30 || p.n >= int64_t{1} << 30 || p.k >= int64_t{1} << 30) {
    return "a size is 2^30 or more";
  }
  if (p.a.k_stride != 1 || p.b.k_stride != 1 || p.b.packed) return "an operand is not K-major";
  if (!is_aligned(sm90a::a_box(p, 1, 1)) || !is_aligned(sm90a::b_box(p, 1, 1))) {
    return "an address or a row of an operand is not a multiple of 16 bytes";
  }
  if (!is_fp8(a) && (p.a_scale.data != nullptr || p.b_scale.data != nullptr)) {
    return "16-bit operands come with scales";
  }
  if (has_block_scales(p)) {
    if ((p.a_scale.data != nullptr && p.a_scale.k_block != 128) ||
        (p.b_scale.data != nullptr && p.b_scale.k_block != 128)) {
      return "scales are not by 128 of k";
    }
    if (p.b_scale.data != nullptr && p.b_scale.row_block % 128 != 0 && p.b_scale.row_block < p.n) {
      return "B has scales by row and block of k";
    }
  } else if (p.b_scale.data != nullptr && p.b_scale.row_block > 1 &&
             p.b_scale.row_block % 128 != 0 && p.b_scale.row_block < p.n) {
    return "scales of B are not by 128 rows";
  }
  const Output& out = p.out;
  if (out.accumulate || out.c.data != nullptr || out.divisor != nullptr || out.scale != nullptr) {
    return "the output is more than the product";
  }
  if (is_fp8(out.type)) return "the output is FP8";
  return nullptr;
}

void sm90a_gemm(const Gemm& p, const Launch& launch) {
  if (!is_fp8(p.a.type)) return sm90a::gemm_16bit(p, launch);
  if (p.a.type == DType::kE4M3 && p.b.type == DType::kE4M3) return sm90a::gemm_e4m3(p, launch);
  sm90a::gemm_mixed_fp8(p, launch);
}

SignalUnits sm90a_signal_units(const Gemm& p, const Launch& launch) {
  const sm90a::TileCost& form = sm90a::cost_of(sm90a::tile_form(p, launch.num_sms));
  return {form.rows, form.cols};
}

namespace sm90a {

TensorBox a_box(const Gemm& p, int x, int rows) {
  const Operand& a = p.a;
  return box({a.data, a.type, p.k, p.rows.rows, row_planes(p.rows), a.row_stride, a.group_stride, x,
              rows});
}

TensorBox b_box(const Gemm& p, int x, int rows) {
  const Operand& b = p.b;
  return box({b.data, b.type, p.k, p.n, p.rows.num_groups, b.row_stride, b.group_stride, x, rows});
}

TensorBox out_box(const Gemm& p, int x, int rows) {
  const Output& out = p.out;
  return box({out.data, out.type, p.n, p.rows.rows, row_planes(p.rows), out.row_stride,
              out.group_stride, x, rows});
}

ScaleCopy scale_copy(const Gemm& p) {
  const Scales &a = p.a_scale, &b = p.b_scale;
  if (a.data == nullptr || b.data == nullptr || b.row_block != 128 || b.k_stride != 1 ||
      !is_aligned(b_scale_box(p, 1, 1))) {
    return ScaleCopy::kWords;
  }
  if (a.k_stride == 1 && is_aligned(a_scale_box(p, 1, 1, true))) return ScaleCopy::kBoxesAlongK;
  // Boxes start at multiples of 16 bytes.
  const bool aligned_rows =
      is_batched(p.rows) || (p.rows.mode != RowMode::kPerExpert && p.rows.alignment % 4 == 0);
  if (a.row_stride == 1 && aligned_rows && is_aligned(a_scale_box(p, 1, 1, false))) {
    return ScaleCopy::kBoxesAlongRows;
  }
  return ScaleCopy::kWords;
}

TensorBox a_scale_box(const Gemm& p, int x, int y, bool along_k) {
  const Scales& a = p.a_scale;
  const int64_t blocks = ceil_div(p.k, 128), rows = p.rows.rows;
  return box({a.data, DType::kF32, along_k ? blocks : rows, along_k ? rows : blocks,
              row_planes(p.rows), along_k ? a.row_stride : a.k_stride, a.group_stride, x, y,
              false});
}

TensorBox b_scale_box(const Gemm& p, int x, int y) {
  const Scales& b = p.b_scale;
  return box({b.data, DType::kF32, ceil_div(p.k, 128), ceil_div(p.n, 128), p.rows.num_groups,
              b.row_stride, b.group_stride, x, y, false});
}

ScaleMode scale_mode(const Gemm& p) {
  if (!is_fp8(p.a.type)) return ScaleMode::kNone;
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
  const bool mixed = is_fp8(p.a.type) && !(p.a.type == DType::kE4M3 && p.b.type == DType::kE4M3);
  if (mixed) return TileForm::kWide;
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

}  // namespace sm90a
}  // namespace mate::gpu
