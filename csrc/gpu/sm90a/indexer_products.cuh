// The warpgroups that multiply tiles of keys with an item's queries and add up over heads.
#pragma once

#include "gpu/sm90a/indexer_shared.cuh"
#include "gpu/sm90a/wgmma.cuh"

namespace mate::gpu::sm90a {

// Descriptors of tiles of rows of `depth` bytes, swizzled by as many. The upper half is the same
// for all of them; adding bytes / 16 to the lower one moves along a row, or by whole rows.
template <int depth>
struct TileDescriptor {
  static constexpr uint32_t kSwizzle = depth == 128 ? 1 : depth == 64 ? 2 : 3;
  static constexpr uint64_t kUpper = uint64_t{8 * depth >> 4 | kSwizzle << 30} << 32;

  __device__ static uint32_t lower(const void* tile) {
    return (shared_address(tile) & 0x3ffff) >> 4 | 1u << 16;
  }
};

// 2 x, or zero where x is below, NaN where it is one. Sums are issued at twice the rate of maxima.
__device__ __forceinline__ float twice_relu(float x) { return x + fabsf(x); }

// The rows whose logits a lane stores: of each group one of four lanes' share. Row q of a group
// belongs to lanes by bit 1, the two halves of the tokens (8 apart) by bit 0.
template <typename S>
struct LaneRows {
  static constexpr int kCount = S::kGroupRows > 2 ? S::kGroupRows / 2 : 1;

  __device__ static int first() { return S::kGroupRows == 1 ? 0 : (threadIdx.x >> 1 & 1) * kCount; }
  // Of a single row, two lanes hold each logit.
  __device__ static bool stores() { return S::kGroupRows > 1 || (threadIdx.x & 2) == 0; }
};

// Sums over heads of one product by half the weights: of each row and both tokens of this thread,
// then over the quad.
// The order does not depend on the number of rows.
template <typename S>
__device__ __forceinline__ void sum_heads(const float (&products)[S::kColumns / 2],
                                          const float (&half_weights)[S::kColumns / 4],
                                          float (&logits)[LaneRows<S>::kCount]) {
  constexpr int kRows = S::kGroupRows, kBlocks = S::kRowHeads / 8;
  constexpr int kLaneRows = LaneRows<S>::kCount;
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
  float of_row[kRows];
#pragma unroll
  for (int q = 0; q < kRows; ++q) {
    float sums[2][2] = {};
#pragma unroll
    for (int j = q * kBlocks; j < (q + 1) * kBlocks; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[i / 2][i % 2] += half_weights[2 * j + i % 2] * twice_relu(products[4 * j + i]);
      }
    }
    const float low = sums[0][0] + sums[0][1], high = sums[1][0] + sums[1][1];
    of_row[q] = (odd ? high : low) + __shfl_xor_sync(kAllLanes, odd ? low : high, 1);
  }
  if constexpr (kRows == 1) {
    logits[0] = of_row[0] + __shfl_xor_sync(kAllLanes, of_row[0], 2);
  } else {
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
      const float low = of_row[i], high = of_row[kLaneRows + i];
      logits[i] = (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, 2);
    }
  }
}

// A tile in work.
struct TileInWork {
  int stage, token;
  float scale;
  bool exists, last;
};

template <typename S, typename Items>
class Scorer {
 public:
  __device__ Scorer(const ScoreArgs<Items>& p, const ScoreShared<S>& shared)
      : p_(p),
        shared_(shared),
        notes_(shared.notes()),
        wg_(threadIdx.x / 128),
        token_(threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + 8 * (threadIdx.x & 1)) {}

  // The block's share has `count` tiles.
  __device__ void run(int count) {
    const int of_ring = S::kSplitsRows ? 0 : wg_;
    StageRing<S> ring(of_ring);
    for (int at = of_ring; at < count;) {
      wait(&notes_.full[ring.stage], ring.phase);
      const int item = notes_.tiles[ring.stage].item;
      begin_item(item);
      TileInWork tile;
      if (take(ring, at, tile)) {
        if (kGroups > 1 && groups_ == 1) {
          score_item<1>(ring, at, tile);
        } else {
          score_item<kGroups>(ring, at, tile);
        }
      }
      if (threadIdx.x % 32 == 0) arrive(&notes_.items_empty[item & 1]);
    }
  }

 private:
  static constexpr int kGroups = S::kGroups, kLaneRows = LaneRows<S>::kCount;
  using Products = float[S::kColumns / 2];

  __device__ void begin_item(int item) {
    const int slot = item & 1;
    wait(&notes_.items_full[slot], item >> 1 & 1);
    const ItemNote<S>& note = notes_.items[slot];
    const int wg_row = S::kSplitsRows ? wg_ * S::kWarpgroupRows : 0;
    queries_ =
        TileDescriptor<S::kDepth>::lower(shared_.queries(slot) + wg_row * S::kRowHeads * S::kDepth);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < S::kColumns / 8; ++i) {
        const int column = 8 * i + threadIdx.x % 4 * 2;
        const float* weights = note.weights[wg_row + g * S::kGroupRows + column / S::kRowHeads];
        half_weights_[g][2 * i] = 0.5f * weights[column % S::kRowHeads];
        half_weights_[g][2 * i + 1] = 0.5f * weights[column % S::kRowHeads + 1];
      }
    }
    RowTarget* targets = notes_.targets[wg_];
    sync_threads(1 + wg_, 128);  // no warp is still with the item before
    if (threadIdx.x % 128 < S::kWarpgroupRows) {
      const int row = wg_row + threadIdx.x % 128;
      targets[threadIdx.x % 128] = target(note, row);
    }
    sync_threads(1 + wg_, 128);
    first_ = INT_MAX;
    end_ = 0;
    groups_ = 1;
#pragma unroll
    for (int i = 0; i < S::kWarpgroupRows; ++i) {
      if (targets[i].first >= targets[i].end) continue;
      first_ = min(first_, targets[i].first);
      end_ = max(end_, targets[i].end);
      groups_ = 1 + i / S::kGroupRows;
    }
  }

  __device__ RowTarget target(const ItemNote<S>& note, int row) const {
    if (row >= note.rows.count) return {0, 0, nullptr};
    const RowView seen = row_view(p_.items, note.rows, row, note.first[row], note.end[row]);
    return {seen.first, seen.end, p_.out + (note.rows.first + row) * p_.out_stride - seen.shift};
  }

  // The next tile of the item that a row of this warpgroup sees; false after the item's last tile.
  __device__ bool take(StageRing<S>& ring, int& at, TileInWork& tile) {
    for (;;) {
      wait(&notes_.full[ring.stage], ring.phase);
      const TileNote note = notes_.tiles[ring.stage];
      tile = {ring.stage, note.token, shared_.scales(ring.stage)[token_], note.exists, note.last};
      ring.advance();
      at += S::kRings;
      if (note.token < end_ && note.token + kTileTokens > first_) return true;
      release(tile);
      if (note.last) return false;
    }
  }

  __device__ void release(const TileInWork& tile) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(&notes_.empty[tile.stage]);
  }

  template <int group>
  __device__ __forceinline__ void multiply_tile(const TileInWork& tile, Products& products) const {
    using Descriptor = TileDescriptor<S::kDepth>;
    const uint32_t a = Descriptor::lower(shared_.keys(tile.stage));
    uint32_t b = queries_ + (group * S::kColumns * S::kDepth >> 4);
    asm volatile("" : "+r"(b));  // or all sums of it stay in registers from tile to tile
    fence_sums(products);
    begin_products();
#pragma unroll
    for (int i = 0; i < S::kDepth / 32; ++i) {
      multiply<DType::kE4M3, DType::kE4M3, S::kColumns>(products, Descriptor::kUpper | (a + 2 * i),
                                                        Descriptor::kUpper | (b + 2 * i), i != 0);
    }
    commit_products();
    fence_sums(products);
  }

  template <int group>
  __device__ __forceinline__ void store_logits(const TileInWork& tile, Products& products) const {
    fence_sums(products);
    float logits[kLaneRows];
    sum_heads<S>(products, half_weights_[group], logits);
    const int token = tile.token + token_;
    const RowTarget* targets = notes_.targets[wg_] + group * S::kGroupRows + LaneRows<S>::first();
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
      const RowTarget to = targets[i];
      if (token >= to.first && token < to.end && LaneRows<S>::stores()) {
        to.out[token] = tile.exists ? tile.scale * logits[i] : p_.clean_value;
      }
    }
  }

  // From a tile on, through the item's last one. The sums of one product are taken while the next
  // one is under way, or those of the other warpgroups. None stays so around the loop: the compiler
  // would order all products.
  template <int groups>
  __device__ void score_item(StageRing<S>& ring, int& at, TileInWork tile) {
    do {
      Products products[groups];
      multiply_tile<0>(tile, products[0]);
      if constexpr (groups > 1) {
        multiply_tile<1>(tile, products[1]);
        wait_products<1>();
        store_logits<0>(tile, products[0]);
      }
      wait_products<0>();
      release(tile);
      store_logits<groups - 1>(tile, products[groups - 1]);
    } while (!tile.last && take(ring, at, tile));
  }

  const ScoreArgs<Items>& p_;
  const ScoreShared<S>& shared_;
  ScoreNotes<S>& notes_;
  int wg_, token_;
  // Of the item in work.
  uint32_t queries_;  // lower half of a descriptor
  int first_, end_;   // tokens that any row of this warpgroup sees
  int groups_;        // up to the last one with such a row
  float half_weights_[kGroups][S::kColumns / 4];
};

}  // namespace mate::gpu::sm90a
