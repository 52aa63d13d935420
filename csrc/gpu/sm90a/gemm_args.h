// What the Hopper GEMM kernels get from the host.
#pragma once

#include <cuda.h>

#include "gpu/gemm.h"
#include "gpu/sm90a/tensor_map.h"

namespace mate::gpu::sm90a {

// How scales reach the sums: after every block of 128 of k, once at the end, or not at all.
enum class ScaleMode { kBlocks, kEnd, kNone };

// How scales of blocks reach shared memory: by words, or by boxes of the copy engine, those of A
// from scales that lie along k or along rows.
enum class ScaleCopy { kWords, kBoxesAlongK, kBoxesAlongRows };

struct GemmArgs {
  CUtensorMap a, b;
  Rows rows;
  int n, k_blocks;  // columns of the output, steps of 128 bytes along k
  int n_tiles;      // of a cluster
  int a_box_rows;   // rows of A that one copy moves
  int k_size;       // bytes of an element
  Scales a_scale, b_scale;
  CUtensorMap a_scales, b_scales;  // where the copy engine takes them
  ScaleCopy scale_copy;
  Output out;
  CUtensorMap out_map;
  bool out_boxes;  // whether the copy engine writes
  Signal signal;
};

// Operands as the copy engine sees them, in boxes of `x` elements of `rows` rows.
TensorBox a_box(const Gemm& p, int x, int rows);
TensorBox b_box(const Gemm& p, int x, int rows);
TensorBox out_box(const Gemm& p, int x, int rows);

// Scales by blocks in the same way.
ScaleCopy scale_copy(const Gemm& p);
TensorBox a_scale_box(const Gemm& p, int x, int y, bool along_k);
TensorBox b_scale_box(const Gemm& p, int x, int y);

// Height of tiles for a product.
enum class Height { kSmall, kMedium, kLarge, kPairs };
Height tile_height(const Gemm& p);
ScaleMode scale_mode(const Gemm& p);

// One for each pair of types.
void gemm_e4m3(const Gemm& p, const Launch& launch);
void gemm_mixed_fp8(const Gemm& p, const Launch& launch);
void gemm_16bit(const Gemm& p, const Launch& launch);

}  // namespace mate::gpu::sm90a
