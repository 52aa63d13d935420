// Views of an entry point's tensors.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <cstdint>

namespace mate::api {

using tvm::ffi::Optional;
using tvm::ffi::TensorView;
using OptionalTensor = Optional<TensorView>;

// Stride of a dimension for indexing; 0 where its size is 1, so that it broadcasts.
inline int64_t step(const TensorView& x, int dim) { return x.size(dim) == 1 ? 0 : x.stride(dim); }

template <typename T>
inline T* data(const TensorView& x) {
  return reinterpret_cast<T*>(static_cast<char*>(x.data_ptr()) + x.byte_offset());
}

template <typename T>
inline T* data(const OptionalTensor& x) {
  return x.has_value() ? data<T>(*x) : nullptr;
}

}  // namespace mate::api
