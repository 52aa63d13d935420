#include "gpu/scratch.h"

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>

namespace mate::gpu {
namespace {

using tvm::ffi::Function;
using tvm::ffi::Tensor;

// Kept to the end of the process: Python is gone before static objects are.
Function* lender = nullptr;

// lend(bytes, device index) is memory of the caller's framework, whose allocator goes by the
// current stream and knows of captures; the pools of this runtime are not known to do either.
void use_allocator(Function lend) {
  if (lender == nullptr) {
    lender = new Function(std::move(lend));
  } else {
    *lender = std::move(lend);
  }
}

}  // namespace

Scratch::Scratch(int64_t bytes, const Launch& launch) : stream_(launch.stream) {
  if (bytes == 0) return;
  if (lender == nullptr) throw std::logic_error("scratch: use_allocator was not called");
  auto* memory = new Tensor((*lender)(bytes, launch.device).cast<Tensor>());
  owner_ = memory;
  data_ = static_cast<char*>(memory->data_ptr()) + memory->byte_offset();
}

Scratch::~Scratch() { delete static_cast<Tensor*>(owner_); }

TVM_FFI_DLL_EXPORT_TYPED_FUNC(use_allocator, use_allocator);

}  // namespace mate::gpu
