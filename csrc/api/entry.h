// What every entry point shares: views of arguments, the chosen kernels, and the record of calls.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <atomic>
#include <chrono>
#include <cstdint>

#include "cpu/isa.h"
#include "params.h"

namespace mate::api {

using tvm::ffi::Optional;
using tvm::ffi::TensorView;

// The kernels in use; a bad MATE_PLUGIN_ISA becomes a ValueError.
const cpu::Kernels& kernels();

// Calls of one entry point and the time spent in them, kept for the life of the process.
struct CallCounter {
  explicit CallCounter(const char* op);
  const char* op;
  std::atomic<int64_t> calls{0}, nanoseconds{0};
  CallCounter* next;
};

// Counts the call it lives in.
class CallTimer {
 public:
  explicit CallTimer(CallCounter& counter)
      : counter_(counter), start_(std::chrono::steady_clock::now()) {}
  ~CallTimer() {
    std::chrono::nanoseconds spent = std::chrono::steady_clock::now() - start_;
    counter_.calls.fetch_add(1, std::memory_order_relaxed);
    counter_.nanoseconds.fetch_add(spent.count(), std::memory_order_relaxed);
  }

 private:
  CallCounter& counter_;
  std::chrono::steady_clock::time_point start_;
};

#define MATE_COUNT_CALL(op)                    \
  static ::mate::api::CallCounter counter(op); \
  ::mate::api::CallTimer timer(counter)

// Stride of a dimension for indexing; 0 where its size is 1, so that it broadcasts.
inline int64_t step(const TensorView& x, int dim) { return x.size(dim) == 1 ? 0 : x.stride(dim); }

template <typename T>
inline T* data(const TensorView& x) {
  return reinterpret_cast<T*>(static_cast<char*>(x.data_ptr()) + x.byte_offset());
}

template <typename T>
inline T* data(const Optional<TensorView>& x) {
  return x.has_value() ? data<T>(*x) : nullptr;
}

}  // namespace mate::api
