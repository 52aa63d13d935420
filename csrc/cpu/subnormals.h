// Included inside the namespace of the instruction set.

constexpr unsigned kFlushesSubnormals = 0x8040;  // flush to zero, and subnormals are zero

// Whether multiply-adds take subnormal numbers at full speed, as AMD's do.
inline bool subnormals_at_full_speed() {
  static const bool amd = __builtin_cpu_is("amd");
  return amd;
}

inline bool flushes_subnormals() { return (_mm_getcsr() & kFlushesSubnormals) != 0; }

// Subnormal numbers are what they are while this lives, whatever the thread was told.
class WithSubnormals {
 public:
  WithSubnormals() : before_(_mm_getcsr()) {
    if (before_ & kFlushesSubnormals) _mm_setcsr(before_ & ~kFlushesSubnormals);
  }
  ~WithSubnormals() {
    if (before_ & kFlushesSubnormals) _mm_setcsr(before_);
  }
  WithSubnormals(const WithSubnormals&) = delete;
  WithSubnormals& operator=(const WithSubnormals&) = delete;

 private:
  unsigned before_;
};
