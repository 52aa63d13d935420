#include "cpu/logits_buffer.h"

#include <atomic>

namespace mate::cpu {
namespace {

std::atomic<int64_t> alive{0}, peak{0};

}  // namespace

LogitsBuffer::LogitsBuffer(int64_t count)
    : bytes_(count * static_cast<int64_t>(sizeof(float))), data_(new float[count]) {
  const int64_t now = alive.fetch_add(bytes_) + bytes_;
  int64_t seen = peak.load();
  while (seen < now && !peak.compare_exchange_weak(seen, now)) {
  }
}

LogitsBuffer::~LogitsBuffer() { alive.fetch_sub(bytes_); }

int64_t logits_peak() { return peak.load(); }

void reset_logits_peak() { peak.store(alive.load()); }

}  // namespace mate::cpu
