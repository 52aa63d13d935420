#include "gpu/entry.h"

namespace mate::api {

const char* usual_impl() { return "portable"; }

}  // namespace mate::api

namespace mate::gpu {

bool takes_sm90a(const Launch& launch, const char* unfit) {
  Impl wanted;
  try {
    wanted = wanted_impl();
  } catch (const std::invalid_argument& e) {
    TVM_FFI_THROW(ValueError) << e.what();
  }
  if (wanted == Impl::kPortable) return false;
  if (unfit == nullptr && !is_hopper(launch.device)) {
    unfit = "the device is not of compute capability 9.0";
  }
  if (unfit == nullptr) {
    api::CallTimer::served_by("sm90a");
    return true;
  }
  if (wanted == Impl::kSm90a) {
    TVM_FFI_THROW(ValueError) << "MATE_PLUGIN_IMPL: expected auto or portable, got 'sm90a': "
                              << unfit;
  }
  return false;
}

}  // namespace mate::gpu
