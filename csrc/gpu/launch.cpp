#include "gpu/launch.h"

#include <cstdlib>
#include <mutex>
#include <vector>

namespace mate::gpu {
namespace {

struct Properties {
  int major = 0, minor = 0, num_sms = 0;
};

const Properties& properties(int device) {
  static std::mutex mutex;
  static std::vector<Properties> known(64);
  std::lock_guard<std::mutex> lock(mutex);
  Properties& p = known.at(device);
  if (p.num_sms == 0) {
    auto attribute = [&](MATE_RUNTIME(DeviceAttr) which) {
      int value = 0;
      check(MATE_RUNTIME(DeviceGetAttribute)(&value, which, device), "device");
      return value;
    };
    p.major = attribute(MATE_RUNTIME(DevAttrComputeCapabilityMajor));
    p.minor = attribute(MATE_RUNTIME(DevAttrComputeCapabilityMinor));
#ifdef MATE_MUSA
    const int threads = attribute(MATE_RUNTIME(DevAttrWarpSize));
    if (p.major * 10 + p.minor < 31 || threads != 32) {
      throw std::runtime_error(
          "expected a device of compute capability 3.1 or newer with warps of 32 threads, got " +
          std::to_string(p.major) + "." + std::to_string(p.minor) + " with warps of " +
          std::to_string(threads));
    }
#endif
    p.num_sms = attribute(MATE_RUNTIME(DevAttrMultiProcessorCount));
  }
  return p;
}

}  // namespace

Impl wanted_impl() {
  static const Impl impl = [] {
    const char* text = std::getenv("MATE_PLUGIN_IMPL");
    const std::string name = text == nullptr || *text == 0 ? "auto" : text;
    // TileLang's kernels are none of this library, which serves what they leave to it as usual.
    if (name == "auto" || name == "tilelang") return Impl::kAuto;
    if (name == "portable") return Impl::kPortable;
    if (name == "sm90a") return Impl::kSm90a;
    throw std::invalid_argument(
        "MATE_PLUGIN_IMPL: expected auto, portable, sm90a or tilelang, got '" + name + "'");
  }();
  return impl;
}

bool is_hopper(int device) {
  const Properties& p = properties(device);
  return p.major == 9 && p.minor == 0;
}

int num_sms(int device) { return properties(device).num_sms; }

}  // namespace mate::gpu
