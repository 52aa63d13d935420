#include "gpu/scratch.h"

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/c_env_api.h>

namespace mate::gpu {

// The caller's framework lends it: its allocator goes by the current stream and knows of captures,
// which the pools of this runtime are not known to.
Scratch::Scratch(int64_t bytes, const Launch& launch) : stream_(launch.stream) {
  if (bytes == 0) return;
  using tvm::ffi::Tensor;
  const DLDevice device{static_cast<DLDeviceType>(launch.device_type), launch.device};
  Tensor memory =
      Tensor::FromEnvAlloc(TVMFFIEnvTensorAlloc, {bytes}, DLDataType{kDLUInt, 8, 1}, device);
  data_ = static_cast<char*>(memory.data_ptr()) + memory.byte_offset();
  owner_ = new Tensor(std::move(memory));
}

Scratch::~Scratch() { delete static_cast<tvm::ffi::Tensor*>(owner_); }

}  // namespace mate::gpu
