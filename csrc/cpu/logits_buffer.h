// Memory for logits that is accounted for: callers limit it and want to see that the limit holds.
#pragma once

#include <cstdint>
#include <memory>

namespace mate::cpu {

class LogitsBuffer {
 public:
  explicit LogitsBuffer(int64_t count);
  ~LogitsBuffer();
  LogitsBuffer(const LogitsBuffer&) = delete;
  LogitsBuffer& operator=(const LogitsBuffer&) = delete;
  float* data() const { return data_.get(); }

 private:
  int64_t bytes_;
  std::unique_ptr<float[]> data_;
};

// Most bytes of all buffers alive at one time, since the process started or the last reset.
int64_t logits_peak();
void reset_logits_peak();

}  // namespace mate::cpu
