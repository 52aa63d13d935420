#include "api/count.h"

#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include <sstream>

namespace mate::api {
namespace {

std::atomic<CallCounter*> first_counter{nullptr};

// One line per entry point and implementation that ran so far: entry point, implementation, calls,
// nanoseconds, separated by tabs.
tvm::ffi::String counters() {
  std::ostringstream lines;
  for (CallCounter* c = first_counter.load(); c != nullptr; c = c->next) {
    for (const CallCounter::Tally& tally : c->tallies) {
      if (tally.calls.load() == 0) continue;
      const char* impl = tally.impl.load();
      lines << c->op << '\t' << (impl != nullptr ? impl : usual_impl()) << '\t'
            << tally.calls.load() << '\t' << tally.nanoseconds.load() << '\n';
    }
  }
  return lines.str();
}

void reset_counters() {
  for (CallCounter* c = first_counter.load(); c != nullptr; c = c->next) {
    for (CallCounter::Tally& tally : c->tallies) {
      tally.calls = 0;
      tally.nanoseconds = 0;
    }
  }
}

}  // namespace

CallCounter::CallCounter(const char* op) : op(op), next(first_counter.load()) {
  while (!first_counter.compare_exchange_weak(next, this)) {
  }
}

CallCounter::Tally& CallCounter::tally(const char* impl) {
  if (impl != nullptr) {
    for (Tally& one : tallies) {
      if (&one == tallies) continue;
      const char* known = nullptr;
      if (one.impl.compare_exchange_strong(known, impl) || known == impl) return one;
    }
  }
  return tallies[0];
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(counters, counters);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(reset_counters, reset_counters);

}  // namespace mate::api
