// Two versions of e^x for one register. exp_clamped() is for the kernels' passes over a row: it gives 0 far
// below, and uses fourths of ln 2 where a table lookup is cheap. exp_cephes() is for the engine's operations:
// it keeps Cephes' polynomial, since the bits of existing runs depend on it.
#pragma once

#include "registers.h"

namespace rapo::simd {
namespace RAPO_ISA {
namespace {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kRoundToWhole = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
// ln 2 in two parts. The product of the first part with any whole number n that occurs is exact.
constexpr float kLn2 = 0.693359375f, kLn2Rest = -2.12194440e-4f;

/// exp_clamped() splits x into a multiple of ln 2 / kParts and a rest.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int kParts = 4;
#else
constexpr int kParts = 1;
#endif

/// Adding this constant rounds to a whole number n and leaves n + 127 kParts in the lowest bits: the exponent
/// of 2^(n / kParts).
constexpr float kRound = kRoundToWhole + 127 * kParts;

/// 2^(n / kParts) for x = n + kRound.
inline F pow2(F x) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // The bits of 2^(j / 4), minus the bits of 1 and minus j << 21, which the shift adds.
  const __m256 table = _mm256_castsi256_ps(
      _mm256_setr_epi32(0, -0x7c810, -0xafb0d, -0x8bb03, 0, -0x7c810, -0xafb0d, -0x8bb03));
  const __m256i n = _mm256_castps_si256(x);
  const __m256i part = _mm256_castps_si256(_mm256_permutevar_ps(table, n));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(n, 21), part));
#else
  return to_exponent(x);
#endif
}

/// x - n ln 2 / kParts. Where products are rounded, ln 2 is subtracted in two parts. A fused product needs
/// one part: the error of ln 2 as a float changes e^x by a relative 2e-9 |x|.
inline F reduce(F x, F n) {
  if (kFused) return fnma(n, set1(0.693147180559945309f / kParts), x);
  return fnma(n, set1(kLn2Rest / kParts), fnma(n, set1(kLn2 / kParts), x));
}

// -127 ln 2, where 2^n becomes 0. An x clamped to this has e^x = 0, and e^x x is finite even if x was -inf.
constexpr float kExpMin = -88.0296919f;

inline F clamp_low(F x) { return max(set1(kExpMin), x); }

/// e^x for kExpMin <= x <= 88, with relative error 1.4e-7 + 2.8e-9 |x|; 0 at kExpMin; NaN for NaN. Subnormal
/// results lose bits.
inline F exp_clamped(F x) {
  const F rounded = fma(x, set1(kLog2E * kParts), set1(kRound));
  const F r = reduce(x, sub(rounded, set1(kRound)));
  // e^r = 1 + r + r^2 (...) on |r| <= ln 2 / (2 kParts). The polynomials minimise the largest relative error:
  // 3.1e-9 and 5.3e-9.
  F p;
  if (kParts == 1) {
    p = fma(set1(0.0013814540f), r, set1(0.0083687454f));
    p = fma(p, r, set1(0.041668389f));
    p = fma(p, r, set1(0.16666521f));
    p = fma(p, r, set1(0.49999994f));
  } else {
    static_assert(kParts == 1 || kParts == 4, "the polynomial's coefficients depend on it");
    p = fma(set1(0.041641735f), r, set1(0.16672109f));
    p = fma(p, r, set1(0.50000018f));
  }
  p = fma(p, r, set1(1));
  p = fma(p, r, set1(1));
  return mul(p, pow2(rounded));
}

/// e^x with relative error below 2e-7 on [-87.3, 88.3]. Arguments outside are moved to these bounds; NaN
/// stays NaN.
RAPO_INLINE F exp_cephes(F x) {
  x = min(set1(88.3f), max(set1(-87.3f), x));
  const F rounded = fma(x, set1(kLog2E), set1(kRoundToWhole)), n = sub(rounded, set1(kRoundToWhole));
  const F r = fnma(n, set1(kLn2Rest), fnma(n, set1(kLn2), x));
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(mul(p, r), r, r), set1(1));
  return mul(p, to_exponent(add(rounded, set1(127))));
}

}  // namespace
}  // namespace RAPO_ISA
}  // namespace rapo::simd
