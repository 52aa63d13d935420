// Device memory for the length of one call.
#pragma once

#include <cstdint>

#include "gpu/launch.h"

namespace mate::gpu {

// Memory in the order of the launch's stream, which a graph may capture: work queued later may take
// it over. cuda/ and musa/ take it from where each has such memory.
class Scratch {
 public:
  Scratch(int64_t bytes, const Launch& launch);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <typename T>
  T* at(int64_t byte_offset = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + byte_offset);
  }

 private:
  Stream stream_;
  void* data_ = nullptr;
  void* owner_ = nullptr;  // what keeps the memory, where that is not the address
};

}  // namespace mate::gpu
