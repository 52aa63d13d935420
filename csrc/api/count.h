// The record of calls: how often each entry point ran, on which implementation, and for how long.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace mate::api {

// Name of the implementation that serves a call unless `CallTimer::served_by` names another; each
// library has its own.
const char* usual_impl();

// Calls of one entry point and the time spent in them, kept for the life of the process.
class CallCounter {
 public:
  explicit CallCounter(const char* op);

  struct Tally {
    std::atomic<const char*> impl{nullptr};  // null: the usual one
    std::atomic<int64_t> calls{0}, nanoseconds{0};
  };
  // That of an implementation, told apart by the address of its name; null is the usual one.
  Tally& tally(const char* impl);

  const char* const op;
  Tally tallies[4];  // the usual one first; names that find no room count as that
  CallCounter* next;
};

// Counts the call it lives in.
class CallTimer {
 public:
  explicit CallTimer(CallCounter& counter)
      : counter_(counter), outer_(current_), start_(std::chrono::steady_clock::now()) {
    current_ = this;
  }
  ~CallTimer() {
    current_ = outer_;
    std::chrono::nanoseconds spent = std::chrono::steady_clock::now() - start_;
    CallCounter::Tally& tally = counter_.tally(impl_);
    tally.calls.fetch_add(1, std::memory_order_relaxed);
    tally.nanoseconds.fetch_add(spent.count(), std::memory_order_relaxed);
  }
  CallTimer(const CallTimer&) = delete;
  CallTimer& operator=(const CallTimer&) = delete;

  // Counts the call that this thread is in as one of `impl`, a string that lives on.
  static void served_by(const char* impl) {
    if (current_ != nullptr) current_->impl_ = impl;
  }

 private:
  static inline thread_local CallTimer* current_ = nullptr;
  CallCounter& counter_;
  CallTimer* outer_;
  const char* impl_ = nullptr;
  std::chrono::steady_clock::time_point start_;
};

#define MATE_COUNT_CALL(op)                    \
  static ::mate::api::CallCounter counter(op); \
  ::mate::api::CallTimer timer(counter)

}  // namespace mate::api
