#include "simt.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "musa_runtime_api.h"

namespace simt {

Thread* now = nullptr;
Block block;

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 1 << 20;
#else
constexpr size_t kStack = 1 << 18;
#endif

#ifndef SIMT_CAPABILITY
#define SIMT_CAPABILITY 31
#endif

// Of a warp or of a block.
struct Gathering {
  int live, arrived;
  Meeting kind;
  uint64_t number;  // of those that are over
  bool any[2];      // of the gathering at hand and the one before, by the parity of `number`
};

struct Fiber : Thread {
  jmp_buf at;
  ucontext_t first;
  bool started = false, is_done = true;
  const Gathering* awaited = nullptr;
  uint64_t until = 0;  // the number of the awaited gathering that ends the wait

  bool is_ready() const { return !is_done && (awaited == nullptr || awaited->number >= until); }
};

struct Warp : Gathering {
  Exchanged exchanged[2];
};

std::vector<Fiber> fibers(kMostThreads);
Warp warps[kMostThreads / kWarp];
Gathering whole;
std::function<void()>* body = nullptr;
jmp_buf scheduler;
std::string failure;
std::vector<char> shared_memory;

Fiber& me() { return *static_cast<Fiber*>(now); }

// Back to the scheduler; returns when it is this thread's turn again.
void pause() {
  if (_setjmp(me().at) == 0) _longjmp(scheduler, 1);
}

void end(Gathering& g) {
  g.arrived = 0;
  g.kind = Meeting::kNone;
  ++g.number;
  g.any[g.number % 2] = false;
}

void leave(Gathering& g) {
  --g.live;
  if (g.live > 0 && g.arrived == g.live) end(g);
}

void arrive(Gathering& g, Meeting kind) {
  if (g.kind != Meeting::kNone && g.kind != kind) {
    failure = "threads wait for one another in different calls";
  }
  g.kind = kind;
  const uint64_t until = g.number + 1;
  if (++g.arrived == g.live) return end(g);
  me().awaited = &g;
  me().until = until;
  pause();
  me().awaited = nullptr;
}

void run_threads() {
  for (;;) {
    (*body)();
    me().is_done = true;
    leave(warps[me().warp]);
    leave(whole);
    pause();
  }
}

void start(Fiber& fiber) {
  if (fiber.started) _longjmp(fiber.at, 1);
  if (fiber.first.uc_stack.ss_sp == nullptr) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    // The lowest page of a stack may not be touched, so that an overflow is seen.
    void* stack = mmap(nullptr, kStack + page, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, page, PROT_NONE) != 0) throw std::bad_alloc();
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = static_cast<char*>(stack) + page;
    fiber.first.uc_stack.ss_size = kStack;
    fiber.first.uc_link = nullptr;
  }
  fiber.started = true;
  makecontext(&fiber.first, run_threads, 0);
  setcontext(&fiber.first);
}

void resume(Fiber& fiber) {
  now = &fiber;
  if (_setjmp(scheduler) == 0) start(fiber);
}

// Turns of the warps of a block and of the lanes of a warp, in another order for each block:
// threads that should have waited for others do not always come after them. SIMT_SEED gives others.
struct Turns {
  int warps[kMostThreads / kWarp], lanes[kWarp];
  std::minstd_rand random{std::getenv("SIMT_SEED") ? std::stoul(std::getenv("SIMT_SEED")) : 1};

  void shuffle(int num_warps) {
    std::iota(warps, warps + num_warps, 0);
    std::iota(lanes, lanes + kWarp, 0);
    std::shuffle(warps, warps + num_warps, random);
    std::shuffle(lanes, lanes + kWarp, random);
  }
} turns;

// Lets the lanes of a warp run until all of them wait for other warps.
bool run_warp(int warp, int threads) {
  bool any = false;
  for (bool more = true; more && failure.empty();) {
    more = false;
    for (int lane : turns.lanes) {
      const int i = warp * kWarp + lane;
      if (i >= threads || !fibers[i].is_ready()) continue;
      resume(fibers[i]);
      more = any = true;
    }
  }
  return any;
}

void run_block(int threads) {
  const int num_warps = (threads + kWarp - 1) / kWarp;
  whole = {threads, 0, Meeting::kNone, 0, {}};
  for (int w = 0; w < num_warps; ++w) {
    static_cast<Gathering&>(warps[w]) = {
        std::min(kWarp, threads - w * kWarp), 0, Meeting::kNone, 0, {}};
  }
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.index.x = static_cast<unsigned>(i);
    fiber.lane = i % kWarp;
    fiber.warp = i / kWarp;
    fiber.is_done = false;
    fiber.awaited = nullptr;
  }
  turns.shuffle(num_warps);
  while (whole.live > 0) {
    bool any = false;
    for (int i = 0; i < num_warps; ++i) any |= run_warp(turns.warps[i], threads);
    if (!any && failure.empty()) failure = "threads wait for others that never come";
    if (failure.empty()) continue;
    for (Fiber& fiber : fibers) fiber.started = false;  // to be abandoned where they are
    throw std::runtime_error("simulated kernel: " + std::exchange(failure, {}));
  }
}

std::mutex one_kernel;

void run(unsigned blocks, unsigned threads, size_t shared, std::function<void()>& thread) {
  std::lock_guard<std::mutex> lock(one_kernel);
  body = &thread;
  // What a kernel does not write it cannot count on.
  shared_memory.assign(shared, '\xa5');
  block.size.x = threads;
  block.grid.x = blocks;
  for (block.index.x = 0; block.index.x < blocks; ++block.index.x) {
    run_block(static_cast<int>(threads));
  }
}

std::atomic<void (*)(uint64_t, void*)> recorder{nullptr};
std::vector<std::function<void()>> kept;

void submit(musaStream_t stream, std::function<void()> work) {
  if (auto* record = recorder.load()) {
    kept.push_back(std::move(work));
    record(kept.size() - 1, stream);
  } else {
    work();
  }
}

thread_local musaError_t last_error = musaSuccess;

}  // namespace

bool meet_block(Meeting kind, bool mine) {
  const uint64_t parity = whole.number % 2;
  if (kind == Meeting::kSyncThreadsOr) whole.any[parity] |= mine;
  arrive(whole, kind);
  return whole.any[parity];
}

const Exchanged& exchange(Meeting kind, uint64_t mine) {
  Warp& warp = warps[now->warp];
  Exchanged& all = warp.exchanged[warp.number % 2];
  if (warp.arrived == 0) all.live = 0;
  all.values[now->lane] = mine;
  all.live |= 1u << now->lane;
  arrive(warp, kind);
  return all;
}

void* dynamic_shared() { return shared_memory.data(); }

void launch(unsigned blocks, unsigned threads, size_t shared, musaStream_t stream,
            std::function<void()> thread) {
  if (blocks == 0 || threads == 0 || threads > kMostThreads) {
    last_error = musaErrorInvalidValue;
    return;
  }
  submit(stream, [=]() mutable { run(blocks, threads, shared, thread); });
}

}  // namespace simt

void simt_set_recorder(void (*recorder)(uint64_t, void*)) { simt::recorder = recorder; }

void simt_run(uint64_t number) { simt::kept.at(number)(); }

musaError_t musaGetLastError() { return std::exchange(simt::last_error, musaSuccess); }

const char* musaGetErrorString(musaError_t status) {
  switch (status) {
    case musaSuccess:
      return "no error";
    case musaErrorInvalidValue:
      return "invalid argument";
    default:
      return "invalid device ordinal";
  }
}

musaError_t musaGetDevice(int* device) {
  *device = 0;
  return musaSuccess;
}

musaError_t musaSetDevice(int device) { return device == 0 ? musaSuccess : musaErrorInvalidDevice; }

musaError_t musaDeviceGetAttribute(int* value, musaDeviceAttr which, int device) {
  if (device != 0) return musaErrorInvalidDevice;
  switch (which) {
    case musaDevAttrWarpSize:
      *value = simt::kWarp;
      return musaSuccess;
    case musaDevAttrMultiProcessorCount:
      *value = 6;
      return musaSuccess;
    case musaDevAttrComputeCapabilityMajor:
      *value = SIMT_CAPABILITY / 10;
      return musaSuccess;
    case musaDevAttrComputeCapabilityMinor:
      *value = SIMT_CAPABILITY % 10;
      return musaSuccess;
  }
  return musaErrorInvalidValue;
}

musaError_t musaMemsetAsync(void* data, int value, size_t bytes, musaStream_t stream) {
  simt::submit(stream, [=] { memset(data, value, bytes); });
  return musaSuccess;
}
