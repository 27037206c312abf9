// One register of floats, F, per instruction set, with the few operations that the CPU's code needs. Each
// source file that includes this header is compiled once per instruction set, with RAPO_ISA as its name.
// Everything lies in an unnamed namespace: with a shared symbol the linker could use AVX-512 code on a
// machine without AVX-512. For the same reason no library header with functions is included here.
#pragma once

#include <cstdint>

#include "half.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(RAPO_NEON)
#include <arm_neon.h>
#endif

#define RAPO_STRING_(x) #x
#define RAPO_STRING(x) RAPO_STRING_(x)
#define RAPO_INLINE inline __attribute__((always_inline))

namespace rapo::simd {
namespace RAPO_ISA {
namespace {

constexpr const char* kName = RAPO_STRING(RAPO_ISA);

#if defined(__AVX512F__)

constexpr std::int64_t kLanes = 16;
typedef float F __attribute__((vector_size(64)));  // __m512 as a template's argument would lose an attribute
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
/// Takes b if either is NaN.
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
/// t, but 0 in lanes where e is 0.
inline F zero_where_zero(F e, F t) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(e, _mm512_setzero_ps(), _CMP_NEQ_UQ), t);
}
/// Moves the lowest bits of x to the exponent.
inline F to_exponent(F x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23)); }
constexpr bool kFused = true;  // fma and fnma round once

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load(const BFloat16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline F load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline __m256i to_bf16(F x) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}
inline __m256i to_f16(F x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline void store(BFloat16* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(x)); }
inline void store(Float16* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16(x)); }
/// Writes two vectors past the caches; p is aligned to their size. A cache line of which only half is written
/// this way would go to memory twice.
inline void stream_pair(float* p, F a, F b) {
  _mm512_stream_ps(p, a);
  _mm512_stream_ps(p + kLanes, b);
}
inline void stream_pair(BFloat16* p, F a, F b) {
#if defined(__AVX512BF16__)
  const auto both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
#else
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(a)), to_bf16(b), 1);
#endif
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), both);
}
inline void stream_pair(Float16* p, F a, F b) {
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(to_f16(a)), to_f16(b), 1);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), both);
}
inline void stream_fence() { _mm_sfence(); }
/// Forces the compiler to compute both before the code that follows.
inline void keep_together(F& a, F& b) { asm("" : "+v"(a), "+v"(b)); }

/// The sum of the lanes, in double.
inline double sum_lanes(F x) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
  const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
  return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

#elif defined(__AVX2__)

constexpr std::int64_t kLanes = 8;
typedef float F __attribute__((vector_size(32)));
inline F set1(float x) { return _mm256_set1_ps(x); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F zero_where_zero(F e, F t) {
  return _mm256_and_ps(t, _mm256_cmp_ps(e, _mm256_setzero_ps(), _CMP_NEQ_UQ));
}
inline F to_exponent(F x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23)); }
constexpr bool kFused = true;

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load(const BFloat16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline F load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

/// Rounded to bfloat16, in the lower halves.
inline __m256i round_bf16(F x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
  return _mm256_srli_epi32(rounded, 16);
}
inline __m256i to_bf16(F a, F b) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(round_bf16(a), round_bf16(b)), 0xd8);
}
inline __m128i to_f16(F x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline void store(BFloat16* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(to_bf16(x, x)));
}
inline void store(Float16* p, F x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_f16(x)); }
inline void stream_pair(float* p, F a, F b) {
  _mm256_stream_ps(p, a);
  _mm256_stream_ps(p + kLanes, b);
}
inline void stream_pair(BFloat16* p, F a, F b) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bf16(a, b));
}
inline void stream_pair(Float16* p, F a, F b) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm256_set_m128i(to_f16(b), to_f16(a)));
}
inline void stream_fence() { _mm_sfence(); }
inline void keep_together(F& a, F& b) { asm("" : "+x"(a), "+x"(b)); }

inline double sum_lanes(F x) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
  const __m256d four = _mm256_add_pd(low, high);
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

#elif defined(RAPO_NEON)

constexpr std::int64_t kLanes = 4;
using F = float32x4_t;
inline F set1(float x) { return vdupq_n_f32(x); }
inline F add(F a, F b) { return vaddq_f32(a, b); }
inline F sub(F a, F b) { return vsubq_f32(a, b); }
inline F mul(F a, F b) { return vmulq_f32(a, b); }
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
inline F fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); }
/// NaN if either is NaN. NaNs in a row are found by the row's sums.
inline F max(F a, F b) { return vmaxq_f32(a, b); }
inline F min(F a, F b) { return vminq_f32(a, b); }
inline F zero_where_zero(F e, F t) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(t), vceqzq_f32(e)));
}
inline F to_exponent(F x) { return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(x), 23)); }
constexpr bool kFused = true;

inline F load(const float* p) { return vld1q_f32(p); }
inline F load(const BFloat16* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)), 16));
}
inline F load(const Float16* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
}
inline void store(float* p, F x) { vst1q_f32(p, x); }
inline void store(BFloat16* p, F x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, odd), vdupq_n_u32(0x7fff));
  vst1_u16(reinterpret_cast<std::uint16_t*>(p), vshrn_n_u32(rounded, 16));
}
inline void store(Float16* p, F x) {
  vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(x)));
}
template <class T>
inline void stream_pair(T* p, F a, F b) {
  store(p, a);
  store(p + kLanes, b);
}
inline void stream_fence() {}
inline void keep_together(F&, F&) {}

inline double sum_lanes(F x) {
  return vaddvq_f64(vaddq_f64(vcvt_f64_f32(vget_low_f32(x)), vcvt_high_f64_f32(x)));
}

#else  // any compiler with GCC's vector extensions, for instance with SSE2

constexpr std::int64_t kLanes = 4;
typedef float F __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t I __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t U __attribute__((vector_size(4 * kLanes)));
inline F set1(float x) { return F{} + x; }
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F fma(F a, F b, F c) { return a * b + c; }
inline F fnma(F a, F b, F c) { return c - a * b; }
inline F keep(I mask, F t) { return (F)((I)t & mask); }
inline F max(F a, F b) { return a > b ? a : b; }
inline F min(F a, F b) { return a < b ? a : b; }
inline F zero_where_zero(F e, F t) { return keep(e != set1(0), t); }
inline F to_exponent(F x) { return (F)((I)x << 23); }
constexpr bool kFused = false;

inline F load(const float* p) {
  F x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
typedef std::uint16_t H __attribute__((vector_size(2 * kLanes)));
template <class Half>
inline U widen(const Half* p) {
  H bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return __builtin_convertvector(bits, U);
}
inline F load(const BFloat16* p) { return (F)(widen(p) << 16); }
// As float16_to_float in dtypes.h.
inline F load(const Float16* p) {
  const U half = widen(p), rest = half & 0x7fffu;
  const F scaled = (F)(rest << 13) * set1(5.192296858534828e33f);
  const U special = (U)(rest >= 0x7c00u);
  const U magnitude = ((U)scaled & ~special) | ((0x7f800000u | ((rest & 0x3ffu) << 13)) & special);
  return (F)(magnitude | ((half & 0x8000u) << 16));
}
template <class Half>
inline void narrow(Half* p, U bits) {
  const H half = __builtin_convertvector(bits, H);
  __builtin_memcpy(p, &half, sizeof half);
}
inline void store(float* p, F x) { __builtin_memcpy(p, &x, sizeof x); }
inline void store(BFloat16* p, F x) {
  const U bits = (U)x;
  narrow(p, (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
// As float_to_float16 in dtypes.h.
inline void store(Float16* p, F x) {
  const U bits = (U)x, sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const U normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U small = (U)((F)magnitude + set1(0.5f)) - 0x3f000000u;
  const U is_small = (U)(magnitude < 0x38800000u), is_large = (U)(magnitude >= 0x477ff000u);
  const U is_nan = (U)(magnitude > 0x7f800000u);
  U half = (small & is_small) | (normal & ~is_small & ~is_large) | (0x7c00u & is_large);
  half |= is_nan & 0x200u;
  narrow(p, half | sign);
}
template <class T>
inline void stream_pair(T* p, F a, F b) {
  store(p, a);
  store(p + kLanes, b);
}
inline void stream_fence() {}
inline void keep_together(F&, F&) {}

inline double sum_lanes(F x) {
  double sum = 0;
  for (std::int64_t i = 0; i < kLanes; ++i) sum += static_cast<double>(x[i]);
  return sum;
}

#endif

template <class T>
inline void store_partial(T* p, F x, std::int64_t count) {
  T lanes[kLanes];
  store(lanes, x);
  for (std::int64_t i = 0; i < kLanes; ++i) {
    if (i < count) p[i] = lanes[i];
  }
}
inline float lowest(const float*) { return -__builtin_inff(); }
inline BFloat16 lowest(const BFloat16*) { return {0xff80}; }
inline Float16 lowest(const Float16*) { return {0xfc00}; }
/// The first `count` < kLanes elements; the remaining lanes are -inf.
template <class T>
inline F load_partial(const T* p, std::int64_t count) {
  T lanes[kLanes];
  for (std::int64_t i = 0; i < kLanes; ++i) lanes[i] = i < count ? p[i] : lowest(p);
  return load(lanes);
}

inline float max_lanes(F x) {
  float lanes[kLanes];
  store(lanes, x);
  float m = lanes[0];
  for (std::int64_t i = 1; i < kLanes; ++i) m = lanes[i] > m ? lanes[i] : m;
  return m;
}

}  // namespace
}  // namespace RAPO_ISA
}  // namespace rapo::simd
