// Entry points that measure the machine itself, for benchmarks and the doctor.
#include <chrono>

#include "api/entry.h"

namespace mate::api {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Multiplications and additions per second, in GFLOP/s; 0 where there is nothing to run.
double rate(cpu::Products products, int64_t steps, int64_t num_threads) {
  if (products == nullptr) return 0.0;
  float sink;
  auto start = Clock::now();
  int64_t operations = products(steps, static_cast<int>(num_threads), &sink);
  return static_cast<double>(operations) / seconds_since(start) / 1e9;
}

double fma_peak(int64_t steps, int64_t num_threads) {
  return rate(kernels().multiply_adds, steps, num_threads);
}

double bf16_peak(int64_t steps, int64_t num_threads) {
  return rate(kernels().pair_products, steps, num_threads);
}

double tile_peak(int64_t steps, int64_t num_threads) {
  return rate(kernels().tile_products, steps, num_threads);
}

// Bytes of a contiguous tensor read per second, in GB/s.
double read_bandwidth(TensorView x, int64_t num_threads) {
  int64_t bytes = x.numel() * x.dtype().bits / 8 / 64 * 64;
  float sink;
  auto start = Clock::now();
  kernels().read_memory(data<const void>(x), bytes, static_cast<int>(num_threads), &sink);
  return static_cast<double>(bytes) / seconds_since(start) / 1e9;
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(fma_peak, fma_peak);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(bf16_peak, bf16_peak);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(tile_peak, tile_peak);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(read_bandwidth, read_bandwidth);

}  // namespace
}  // namespace mate::api
