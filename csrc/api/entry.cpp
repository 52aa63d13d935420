#include "api/entry.h"

#include <tvm/ffi/string.h>

#include <sstream>
#include <stdexcept>

namespace mate::api {
namespace {

std::atomic<CallCounter*> first_counter{nullptr};

// One line per entry point called so far: name, calls, nanoseconds, separated by tabs.
tvm::ffi::String counters() {
  std::ostringstream lines;
  for (CallCounter* c = first_counter.load(); c != nullptr; c = c->next) {
    lines << c->op << '\t' << c->calls.load() << '\t' << c->nanoseconds.load() << '\n';
  }
  return lines.str();
}

void reset_counters() {
  for (CallCounter* c = first_counter.load(); c != nullptr; c = c->next) {
    c->calls = 0;
    c->nanoseconds = 0;
  }
}

tvm::ffi::String isa() { return kernels().name; }

tvm::ffi::String available_isas() { return cpu::available(); }

}  // namespace

CallCounter::CallCounter(const char* op) : op(op), next(first_counter.load()) {
  while (!first_counter.compare_exchange_weak(next, this)) {
  }
}

const cpu::Kernels& kernels() {
  try {
    return cpu::kernels();
  } catch (const std::invalid_argument& e) {
    TVM_FFI_THROW(ValueError) << e.what();
  }
  throw;  // not reached
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(counters, counters);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(reset_counters, reset_counters);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(isa, isa);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(available_isas, available_isas);

}  // namespace mate::api
