// What the entry points of the GPU kernels share: the device of a call, and which kernels serve it.
#pragma once

#include <algorithm>

#include "api/count.h"
#include "api/tensors.h"
#include "gpu/launch.h"

namespace mate::gpu {

using api::data;
using api::Optional;
using api::OptionalTensor;
using api::step;
using api::TensorView;

// Makes the device of a tensor the current one for the length of a call.
class Call {
 public:
  // num_mp: most multiprocessors to use; 0 takes all. stream: its handle.
  Call(const TensorView& x, int64_t num_mp, int64_t stream) {
    launch_.device = x.device().device_id;
    check(MATE_RUNTIME(GetDevice)(&before_), "current device");
    if (before_ != launch_.device) {
      check(MATE_RUNTIME(SetDevice)(launch_.device), "current device");
    }
    const int all = num_sms(launch_.device);
    launch_.num_sms = num_mp > 0 ? static_cast<int>(std::min<int64_t>(num_mp, all)) : all;
    launch_.stream = reinterpret_cast<Stream>(stream);
  }
  ~Call() {
    if (before_ != launch_.device) MATE_RUNTIME(SetDevice)(before_);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  const Launch& launch() const { return launch_; }

 private:
  int before_ = 0;
  Launch launch_{};
};

// True where sm_90a kernels serve a call, which then counts as theirs; `unfit` says what stands
// against them, or is null. Raises ValueError where MATE_PLUGIN_IMPL wants them all the same.
bool takes_sm90a(const Launch& launch, const char* unfit);

}  // namespace mate::gpu
