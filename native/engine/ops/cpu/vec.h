// Vectors of 16 floats for the engine's operations, on registers of any width (native/simd), and helpers that
// several operations share. Every source file that includes this header is compiled once per instruction set:
// see CMakeLists.txt.
#pragma once

#include "loops.h"
#include "simd/exp.h"

namespace rapo::loops {
namespace RAPO_ISA {

/// Each file puts its functions into the table of its instruction set.
void fill_adamw(Table& table);
void fill_attention(Table& table);
void fill_embedding(Table& table);
void fill_gate(Table& table);
void fill_gemm(Table& table);
void fill_norm(Table& table);
void fill_product(Table& table);
void fill_rounding(Table& table);
void fill_sample(Table& table);

namespace {

namespace simd = rapo::simd::RAPO_ISA;

using i64 = std::int64_t;
constexpr i64 kLanes = 16;

// Written as two halves: GCC splits a vector wider than the registers into parts and keeps them in memory.
template <class H>
struct Pair {
  H lo, hi;
};

template <i64 lanes>
struct Wide {
  using Type = Pair<typename Wide<lanes / 2>::Type>;
};
template <>
struct Wide<simd::kLanes> {
  using Type = simd::F;
};
using Vec = Wide<kLanes>::Type;

template <class V>
constexpr bool kIsRegister = sizeof(V) == sizeof(simd::F);
template <class H>
constexpr i64 kCount = sizeof(H) / sizeof(float);

#define RAPO_PAIR_OPERATOR(op)                            \
  template <class H>                                      \
  RAPO_INLINE Pair<H> operator op(Pair<H> a, Pair<H> b) { \
    return {a.lo op b.lo, a.hi op b.hi};                  \
  }                                                       \
  template <class H>                                      \
  RAPO_INLINE Pair<H> operator op(Pair<H> a, float b) {   \
    return {a.lo op b, a.hi op b};                        \
  }                                                       \
  template <class H>                                      \
  RAPO_INLINE Pair<H> operator op(float a, Pair<H> b) {   \
    return {a op b.lo, a op b.hi};                        \
  }
RAPO_PAIR_OPERATOR(+)
RAPO_PAIR_OPERATOR(-)
RAPO_PAIR_OPERATOR(*)
RAPO_PAIR_OPERATOR(/)
#undef RAPO_PAIR_OPERATOR
#define RAPO_PAIR_COMPARISON(op)                            \
  template <class H>                                        \
  RAPO_INLINE auto operator op(Pair<H> a, float b) {        \
    return Pair<decltype(a.lo op b)>{a.lo op b, a.hi op b}; \
  }
RAPO_PAIR_COMPARISON(<)
RAPO_PAIR_COMPARISON(==)
#undef RAPO_PAIR_COMPARISON
template <class H>
RAPO_INLINE Pair<H> operator-(Pair<H> a) {
  return {-a.lo, -a.hi};
}
template <class H>
RAPO_INLINE void operator+=(Pair<H>& a, Pair<H> b) {
  a.lo += b.lo;
  a.hi += b.hi;
}

/// Builds a vector from registers: the register that begins at lane `at` is f(at).
template <class V = Vec, class Function>
RAPO_INLINE V build(Function f, i64 at = 0) {
  if constexpr (kIsRegister<V>) {
    return f(at);
  } else {
    using H = decltype(V::lo);
    return {build<H>(f, at), build<H>(f, at + kCount<H>)};
  }
}

RAPO_INLINE Vec splat(float x) {
  return build([x](i64) { return simd::set1(x); });
}

template <class T>
RAPO_INLINE Vec load(const T* p) {
  return build([p](i64 at) { return simd::load(p + at); });
}

typedef std::int32_t Ints __attribute__((vector_size(sizeof(simd::F))));

/// Rounds bfloat16 to nearest even. Rounding a NaN could overflow into the sign bit, so a fixed NaN is
/// stored.
template <class T, class V>
RAPO_INLINE void store(T* p, V v) {
  if constexpr (!kIsRegister<V>) {
    store(p, v.lo);
    store(p + kCount<decltype(v.lo)>, v.hi);
  } else if constexpr (sizeof(T) == 4) {
    simd::store(p, v);
  } else {
    simd::store(p, (simd::F)(v == v ? (Ints)v : Ints{} + 0x7FC00000));
  }
}

template <class Mask, class V>
RAPO_INLINE V choose(Mask mask, V yes, V no) {
  if constexpr (kIsRegister<V>) {
    return mask ? yes : no;
  } else {
    return {choose(mask.lo, yes.lo, no.lo), choose(mask.hi, yes.hi, no.hi)};
  }
}

/// a b + c and c - a b, rounded once if the instruction set has a fused instruction. If the choice were the
/// compiler's, it would depend on the surrounding code when the result is stored as bfloat16.
template <class V>
RAPO_INLINE V fused(V a, V b, V c) {
  if constexpr (kIsRegister<V>) {
    return simd::fma(a, b, c);
  } else {
    return {fused(a.lo, b.lo, c.lo), fused(a.hi, b.hi, c.hi)};
  }
}
template <class V>
RAPO_INLINE V fused_negative(V a, V b, V c) {
  if constexpr (kIsRegister<V>) {
    return simd::fnma(a, b, c);
  } else {
    return {fused_negative(a.lo, b.lo, c.lo), fused_negative(a.hi, b.hi, c.hi)};
  }
}

/// Lanes 0 .. count - 1 of v; `other` in the lanes behind them.
template <class V>
RAPO_INLINE V first_lanes(V v, i64 count, float other) {
  if constexpr (kIsRegister<V>) {
    constexpr std::int32_t numbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Ints lane;
    __builtin_memcpy(&lane, numbers, sizeof lane);
    return lane < static_cast<std::int32_t>(count) ? v : simd::set1(other);
  } else {
    return {first_lanes(v.lo, count, other), first_lanes(v.hi, count - kCount<decltype(v.lo)>, other)};
  }
}

template <class V>
RAPO_INLINE V exp_of(V x) {
  if constexpr (kIsRegister<V>) {
    return simd::exp_cephes(x);
  } else {
    return {exp_of(x.lo), exp_of(x.hi)};
  }
}

/// Takes b if either is NaN.
template <class V>
RAPO_INLINE V max_of(V a, V b) {
  return a > b ? a : b;
}
template <class H>
RAPO_INLINE Pair<H> max_of(Pair<H> a, Pair<H> b) {
  return {max_of(a.lo, b.lo), max_of(a.hi, b.hi)};
}

typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));

/// Reduces a vector to one number: op of its halves, then of that result's halves, and so on.
template <class Op>
RAPO_INLINE float fold(Four v, Op op) {
  return op(op(v[0], v[2]), op(v[1], v[3]));
}
#if defined(__AVX2__)
template <class Op>
RAPO_INLINE float fold(Eight v, Op op) {
  Pair<Four> halves;
  __builtin_memcpy(&halves, &v, sizeof v);
  return fold(op(halves.lo, halves.hi), op);
}
#endif
#if defined(__AVX512F__)
template <class Op>
RAPO_INLINE float fold(Vec v, Op op) {
  Pair<Eight> halves;
  __builtin_memcpy(&halves, &v, sizeof v);
  return fold(op(halves.lo, halves.hi), op);
}
#endif
template <class H, class Op>
RAPO_INLINE float fold(Pair<H> v, Op op) {
  return fold(op(v.lo, v.hi), op);
}

RAPO_INLINE float sum_lanes(Vec v) {
  return fold(v, [](auto a, auto b) { return a + b; });
}
RAPO_INLINE float max_lanes(Vec v) {
  return fold(v, [](auto a, auto b) { return max_of(a, b); });
}

RAPO_INLINE float one(const float* p) { return *p; }
RAPO_INLINE float one(const BFloat16* p) {
  const std::uint32_t u = static_cast<std::uint32_t>(p->bits) << 16;
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}
RAPO_INLINE void put(float* p, float x) { *p = x; }
RAPO_INLINE void put(BFloat16* p, float x) {
  std::uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  p->bits = static_cast<std::uint16_t>(x != x ? 0x7FC0u : (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

/// The first n < 16 elements, followed by zeros.
template <class T>
RAPO_INLINE Vec load_part(const T* p, i64 n) {
  float lanes[kLanes];
  for (i64 i = 0; i < kLanes; ++i) lanes[i] = i < n ? one(p + i) : 0.0f;
  return load(lanes);
}
template <class T>
RAPO_INLINE void store_part(T* p, Vec v, i64 n) {
  float lanes[kLanes];
  store(lanes, v);
  for (i64 i = 0; i < kLanes; ++i) {
    if (i < n) put(p + i, lanes[i]);
  }
}
template <class T>
RAPO_INLINE Vec load_up_to(const T* p, i64 n) {
  return n >= kLanes ? load(p) : load_part(p, n);
}
template <class T>
RAPO_INLINE void store_up_to(T* p, Vec v, i64 n) {
  if (n >= kLanes) {
    store(p, v);
  } else {
    store_part(p, v, n);
  }
}

RAPO_INLINE i64 padded(i64 n) { return (n + kLanes - 1) / kLanes * kLanes; }

}  // namespace
}  // namespace RAPO_ISA
}  // namespace rapo::loops
