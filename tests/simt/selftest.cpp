// Cases that tests/test_simt.py runs by name: each prints what came of it.
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "gpu/launch_kernel.h"

namespace {

using mate::gpu::launch_kernel;

constexpr mate::gpu::Launch kLaunch{nullptr, 0, 6};
std::vector<uint64_t> recorded;

// Sums over the block in the order of a tree, by way of shared memory and of lanes.
__global__ void sum(const int* x, int* out) {
  __shared__ int of_warps[32];
  int v = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) out[blockIdx.x] += of_warps[w];
}

// Threads past the first `count` have returned when the others meet.
__global__ void few(unsigned count, unsigned* ballot) {
  if (threadIdx.x >= count) return;
  __syncthreads();
  const unsigned bits = __ballot_sync(~0u, threadIdx.x % 2 == 0);
  if (threadIdx.x == 0) *ballot = bits;
}

// Without the barrier that it lacks, the first warp may read before the second has written.
__global__ void without_a_barrier(int* out) {
  __shared__ int written[64];
  written[threadIdx.x] = static_cast<int>(blockIdx.x + 1);
  out[blockIdx.x * 64 + threadIdx.x] = written[63 - threadIdx.x];
}

__global__ void in_different_calls() {
  if (threadIdx.x % 2 == 0) {
    __syncwarp();
  } else {
    __ballot_sync(~0u, 1);
  }
}

__global__ void in_one_warp_only() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __ballot_sync(~0u, 1);
    __syncthreads_or(1);
  }
}

void print_sums() {
  std::vector<int> x(2 * 256), out(2);
  for (int i = 0; i < 512; ++i) x[i] = i;
  launch_kernel("sum", sum, {2, 256}, kLaunch, x.data(), out.data());
  std::printf("%d %d\n", out[0], out[1]);
}

void print_recorded() {
  std::vector<int> x(64, 1), out(1, 5);
  simt_set_recorder([](uint64_t number, void*) { recorded.push_back(number); });
  mate::gpu::fill_bytes(out.data(), 0, sizeof(int), kLaunch, "out");
  launch_kernel("sum", sum, {1, 64}, kLaunch, x.data(), out.data());
  simt_set_recorder(nullptr);
  std::printf("%zu", recorded.size());
  for (int value : {1, 2}) {
    std::printf(" %d", out[0]);
    for (int& one : x) one = value;
    for (uint64_t number : recorded) simt_run(number);
  }
  std::printf(" %d\n", out[0]);
}

}  // namespace

int main(int, char** argv) {
  const std::string name = argv[1];
  try {
    if (name == "sums") print_sums();
    if (name == "recorded") print_recorded();
    if (name == "few") {
      unsigned ballot = 0;
      launch_kernel("few", few, {1, 64}, kLaunch, 5u, &ballot);
      std::printf("%u\n", ballot);
    }
    if (name == "no barrier") {
      constexpr int kBlocks = 16;
      std::vector<int> out(kBlocks * 64);
      launch_kernel("", without_a_barrier, {kBlocks, 64}, kLaunch, out.data());
      bool early[2] = {};  // threads of either half that read what was not yet written
      for (int i = 0; i < kBlocks * 64; ++i) early[i % 64 / 32] |= out[i] != i / 64 + 1;
      std::printf("%d %d\n", early[0], early[1]);
    }
    if (name == "different calls") launch_kernel("", in_different_calls, {1, 32}, kLaunch);
    if (name == "different barriers") launch_kernel("", in_one_warp_only, {1, 64}, kLaunch);
    if (name == "too many threads")
      launch_kernel("too many", in_different_calls, {1, 2048}, kLaunch);
    if (name == "device") std::printf("%d\n", mate::gpu::num_sms(0));
  } catch (const std::exception& e) {
    std::printf("%s\n", e.what());
  }
}
