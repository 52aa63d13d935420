#include "api/entry.h"

#include <tvm/ffi/string.h>

#include <stdexcept>

namespace mate::api {
namespace {

tvm::ffi::String isa() { return kernels().name; }

tvm::ffi::String available_isas() { return cpu::available(); }

}  // namespace

const char* usual_impl() { return kernels().name; }

const cpu::Kernels& kernels() {
  try {
    return cpu::kernels();
  } catch (const std::invalid_argument& e) {
    TVM_FFI_THROW(ValueError) << e.what();
  }
  throw;  // not reached
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(isa, isa);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(available_isas, available_isas);

}  // namespace mate::api
