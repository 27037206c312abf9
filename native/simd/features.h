// The instruction sets that the processor has and the operating system supports.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif

namespace rapo::simd {

struct Features {
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, DQ and VL
  bool avx512bf16 = false;
};

#if defined(__x86_64__) || defined(_M_X64)
inline bool bit(unsigned word, int index) { return (word >> index) & 1U; }

/// Reads CPUID and XCR0 directly, because __builtin_cpu_supports needs a compiler's runtime, and zig's
/// runtime answers no to everything.
inline Features read_features() {
  Features found;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool osxsave = bit(c, 27), fma = bit(c, 12), avx = bit(c, 28), f16c = bit(c, 29);
  if (!osxsave) return found;
  std::uint32_t saved = 0, high = 0;
  __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  const bool saves_ymm = (saved & 0x06U) == 0x06U;
#ifdef __APPLE__
  const bool saves_zmm = saves_ymm;  // enabled at the first use
#else
  const bool saves_zmm = (saved & 0xe6U) == 0xe6U;
#endif
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  found.avx2 = saves_ymm && avx && fma && f16c && bit(b, 5);
  found.avx512 = found.avx2 && saves_zmm && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
  const bool has_next = a >= 1;
  if (has_next && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx512bf16 = found.avx512 && bit(a, 5);
  return found;
}
#else
inline Features read_features() { return {}; }
#endif

inline const Features& processor() {
  static const Features found = read_features();
  return found;
}

}  // namespace rapo::simd
