#include "gpu/scratch.h"

#include <cstdint>
#include <mutex>

namespace mate::gpu {
namespace {

// Pool of a device that keeps what is freed: the device's own pool would give it back to the
// driver at every synchronisation, and the next call would wait for it.
cudaMemPool_t scratch_pool(int device) {
  constexpr int kMostDevices = 64;
  static std::mutex mutex;
  static cudaMemPool_t pools[kMostDevices] = {};
  std::lock_guard<std::mutex> lock(mutex);
  if (device >= kMostDevices) throw std::out_of_range("scratch: too many devices");
  if (pools[device] == nullptr) {
    // The first call may be one that is captured, which forbids other calls than launches.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode), "scratch");
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    uint64_t kept = UINT64_MAX;
    cudaError_t status = cudaMemPoolCreate(&pools[device], &properties);
    if (status == cudaSuccess) {
      status = cudaMemPoolSetAttribute(pools[device], cudaMemPoolAttrReleaseThreshold, &kept);
    }
    cudaThreadExchangeStreamCaptureMode(&mode);
    check(status, "scratch");
  }
  return pools[device];
}

}  // namespace

// cudaMalloc would synchronise and could not be captured, while these calls become nodes of a
// graph.
Scratch::Scratch(int64_t bytes, const Launch& launch) : stream_(launch.stream) {
  if (bytes == 0) return;
  check(cudaMallocFromPoolAsync(&data_, bytes, scratch_pool(launch.device), stream_), "scratch");
}

Scratch::~Scratch() {
  if (data_ != nullptr) cudaFreeAsync(data_, stream_);
}

}  // namespace mate::gpu
