// Threads of a GPU on the host: the blocks of a kernel run one after the other, the threads of a
// block in turns, each until it waits for others. Shared variables are static for that reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "musa_runtime_api.h"

namespace simt {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;

struct Index {
  unsigned x;
};

struct Thread {
  Index index;
  int lane, warp;
};

struct Block {
  Index index, size, grid;
};

// The thread that runs, and the block it is of.
extern Thread* now;
extern Block block;

// What threads can meet for; it is an error if those of a warp or block do not agree.
enum class Meeting {
  kNone,
  kSyncThreads,
  kSyncThreadsOr,
  kSyncWarp,
  kBallot,
  kShuffle,
  kShuffleUp,
  kShuffleXor,
};

// Waits for all threads of the block that have not returned; whether any of them gave true.
bool meet_block(Meeting kind, bool mine);

struct Exchanged {
  uint64_t values[kWarp];
  uint32_t live;  // bit: a lane that gave its value
};

// Waits for the lanes of the warp that have not returned. Valid until the next but one.
const Exchanged& exchange(Meeting kind, uint64_t mine);

void* dynamic_shared();

// Runs a kernel, or hands it to the recorder.
void launch(unsigned blocks, unsigned threads, size_t shared, musaStream_t stream,
            std::function<void()> thread);

}  // namespace simt

extern "C" {
// From now on the work of streams is kept and not run: `recorder` gets its number and the stream,
// in the order of the calls. Null ends that.
__attribute__((visibility("default"))) void simt_set_recorder(void (*recorder)(uint64_t number,
                                                                               void* stream));
// Runs what was kept, any number of times. Arguments were copied; the memory that they name has to
// be there.
__attribute__((visibility("default"))) void simt_run(uint64_t number);
}
