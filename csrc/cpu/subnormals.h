// Included inside the namespace of the instruction set.

// Whether multiply-adds take subnormal numbers at full speed, as AMD's do, and are told to.
inline bool subnormals_at_full_speed() {
  static const bool amd = __builtin_cpu_is("amd");
  constexpr unsigned kFlushes = 0x8040;
  return amd && (_mm_getcsr() & kFlushes) == 0;
}
