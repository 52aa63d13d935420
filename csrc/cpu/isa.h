// The instruction sets the core is instantiated for, and the table of kernels each one offers.
#pragma once

#include "cache_params.h"
#include "cpu/packing.h"
#include "indexer_params.h"
#include "mla_params.h"
#include "moe_params.h"
#include "params.h"
#include "piece_params.h"
#include "topk_params.h"

namespace mate::cpu {

// Runs `steps` rounds of independent products on each thread; returns the operations done.
using Products = int64_t (*)(int64_t steps, int threads, float* sink);

// What kernels read of packed weights.
struct PackedWeights {
  bool (*reads)(DType);               // weights of a type, at all
  bool (*takes)(const GroupedGemm&);  // B of one product
  PackedOrder order;
  bool takes_nan;  // whether codes may be NaN
};

struct Kernels {
  const char* name;
  void (*grouped_gemm)(const GroupedGemm&);
  void (*fused_experts)(const FusedExperts&);
  PackedWeights packed;
  void (*indexer_scores)(const IndexerScores&);
  void (*top_k)(const TopK&);
  void (*silu_and_mul)(const SiluAndMul&);
  void (*quantise)(const Quantise&);
  void (*permute)(const Permute&);
  void (*unpermute)(const Unpermute&);
  void (*quantise_keys)(const QuantiseKeys&);
  void (*sparse_mla)(const SparseMla&);
  Products multiply_adds;
  Products pair_products;  // bf16 pairs; nullptr where there is no instruction for them
  Products tile_products;  // bf16 tiles, likewise
  void (*read_memory)(const void* from, int64_t bytes, int threads, float* sink);
};

// The table in use. Throws std::invalid_argument where MATE_PLUGIN_ISA names an unknown
// instruction set or one that this machine lacks.
const Kernels& kernels();

// Names of the instruction sets that this machine can run, best first, separated by commas.
const char* available();

}  // namespace mate::cpu
