// Entry points that measure the machine itself, for benchmarks and the doctor.
#include "api/entry.h"

namespace mate::api {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Multiply-adds per second times two, in GFLOP/s.
double fma_peak(int64_t steps, int64_t num_threads) {
  float sink;
  auto start = Clock::now();
  int64_t operations = kernels().multiply_adds(steps, static_cast<int>(num_threads), &sink);
  return static_cast<double>(operations) / seconds_since(start) / 1e9;
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
TVM_FFI_DLL_EXPORT_TYPED_FUNC(read_bandwidth, read_bandwidth);

}  // namespace
}  // namespace mate::api
