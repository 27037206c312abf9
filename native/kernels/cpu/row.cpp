// The row kernels in terms of simd.h. Compiled once per instruction set with RAPO_ISA as its namespace and
// name.
#include "row.h"

#include <cmath>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef RAPO_ISA
#define RAPO_ISA portable
#endif
#define RAPO_NAME_(x) #x
#define RAPO_NAME(x) RAPO_NAME_(x)

namespace rapo {
namespace RAPO_ISA {
namespace {

#include "simd.h"

// A block is read twice, for its maximum and for its sums, the second time from the first-level cache. Its 64
// terms a lane are what a float adds up, in one or two parts, before the sum goes into a double.
constexpr std::int64_t kBlock = 64 * kLanes;
constexpr double kInfinity = __builtin_inf();

/// The largest element; NaNs are passed over here and show in the sums.
template <class T>
float block_max(const T* row, std::int64_t n) {
  const F low = set1(-__builtin_inff());
  F m0 = low, m1 = low, m2 = low, m3 = low;
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    m0 = max(load(row + i), m0);
    m1 = max(load(row + i + kLanes), m1);
    m2 = max(load(row + i + 2 * kLanes), m2);
    m3 = max(load(row + i + 3 * kLanes), m3);
  }
  for (; i + kLanes <= n; i += kLanes) m0 = max(load(row + i), m0);
  if (i < n) m0 = max(load_partial(row + i, n - i), m0);
  return max_lanes(max(max(m0, m1), max(m2, m3)));
}

/// Raises the maximum that the sums refer to; returns by how much x falls, 0 where nothing had been summed
/// yet.
double raise_max(RowStats& s, double max, float scale) {
  if (!(max > s.max)) return 0;
  double delta = 0;
  if (s.max > -kInfinity) {
    delta = (max - s.max) * static_cast<double>(scale);
    const double k = std::exp(-delta);
    s.weighted = k * (s.weighted - delta * s.sum);
    s.sum *= k;
  }
  s.max = max;
  return delta;
}

/// What is subtracted from the logits: while all of them are -inf the difference must stay -inf, not NaN.
float offset_of(const RowStats& s) { return s.max == -kInfinity ? 0 : static_cast<float>(s.max); }

template <class T>
RowStats stats(const void* data, std::int64_t n, float scale) {
  const T* row = static_cast<const T*>(data);
  RowStats s{-kInfinity, 0, 0};
  const F vscale = set1(scale);
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = n - begin < kBlock ? n : begin + kBlock;
    raise_max(s, static_cast<double>(block_max(row + begin, end - begin)), scale);
    const F offset = set1(offset_of(s));
    F sum0 = set1(0), sum1 = set1(0), weighted0 = set1(0), weighted1 = set1(0);
    std::int64_t i = begin;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      const F x0 = clamp_low(mul(sub(load(row + i), offset), vscale));
      const F x1 = clamp_low(mul(sub(load(row + i + kLanes), offset), vscale));
      const F e0 = exp_clamped(x0), e1 = exp_clamped(x1);
      sum0 = add(sum0, e0);
      sum1 = add(sum1, e1);
      weighted0 = fma(e0, x0, weighted0);
      weighted1 = fma(e1, x1, weighted1);
    }
    for (; i < end; i += kLanes) {
      const F z = end - i < kLanes ? load_partial(row + i, end - i) : load(row + i);
      const F x = clamp_low(mul(sub(z, offset), vscale));
      const F e = exp_clamped(x);
      sum0 = add(sum0, e);
      weighted0 = fma(e, x, weighted0);
    }
    s.sum += sum_lanes(add(sum0, sum1));
    s.weighted += sum_lanes(add(weighted0, weighted1));
  }
  return s;
}

template <class T>
PairStats pair_stats(const void* data, const void* ref_data, std::int64_t n, float scale, float ref_scale) {
  const T* row = static_cast<const T*>(data);
  const T* ref = static_cast<const T*>(ref_data);
  PairStats s{{-kInfinity, 0, 0}, {-kInfinity, 0, 0}, 0, 0};
  const F vscale = set1(scale), vref_scale = set1(ref_scale);
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = n - begin < kBlock ? n : begin + kBlock;
    // Raising a maximum by delta scales that row's e^x by e^-delta and shifts its x by -delta.
    const double delta_p = raise_max(s.p, static_cast<double>(block_max(row + begin, end - begin)), scale);
    s.reverse = std::exp(-delta_p) * s.reverse - delta_p * s.p.sum;
    s.forward += delta_p * s.r.sum;
    const double delta_r =
        raise_max(s.r, static_cast<double>(block_max(ref + begin, end - begin)), ref_scale);
    s.forward = std::exp(-delta_r) * s.forward - delta_r * s.r.sum;
    s.reverse += delta_r * s.p.sum;
    const F offset = set1(offset_of(s.p)), ref_offset = set1(offset_of(s.r));
    F p_sum = set1(0), p_weighted = set1(0), r_sum = set1(0), r_weighted = set1(0), forward = set1(0),
      reverse = set1(0);
    for (std::int64_t i = begin; i < end; i += kLanes) {
      const std::int64_t count = end - i < kLanes ? end - i : kLanes;
      const F z = count < kLanes ? load_partial(row + i, count) : load(row + i);
      const F u = count < kLanes ? load_partial(ref + i, count) : load(ref + i);
      const F x = mul(sub(z, offset), vscale), xr = mul(sub(u, ref_offset), vref_scale);
      const F xc = clamp_low(x), xrc = clamp_low(xr);
      const F e = exp_clamped(xc), er = exp_clamped(xrc);
      p_sum = add(p_sum, e);
      p_weighted = fma(e, xc, p_weighted);
      r_sum = add(r_sum, er);
      r_weighted = fma(er, xrc, r_weighted);
      // The unclamped x: where one distribution has mass, the other may be far below the clamp, or -inf.
      forward = add(forward, zero_where_zero(er, mul(er, sub(xr, x))));
      reverse = add(reverse, zero_where_zero(e, mul(e, sub(x, xr))));
    }
    s.p.sum += sum_lanes(p_sum);
    s.p.weighted += sum_lanes(p_weighted);
    s.r.sum += sum_lanes(r_sum);
    s.r.weighted += sum_lanes(r_weighted);
    s.forward += sum_lanes(forward);
    s.reverse += sum_lanes(reverse);
  }
  return s;
}

/// Elements before `out` is aligned for stream_pair; n where it never is.
template <class Out>
std::int64_t elements_to_alignment(const Out* out, std::int64_t n) {
  const std::uintptr_t pair = 2 * kLanes * sizeof(Out),
                       misaligned = reinterpret_cast<std::uintptr_t>(out) % pair;
  if (misaligned % sizeof(Out) != 0) return n;
  const std::int64_t head =
      misaligned == 0 ? 0 : static_cast<std::int64_t>((pair - misaligned) / sizeof(Out));
  return head < n ? head : n;
}

/// out[i ..] = value(i, count) from begin to end, `count` lanes at a time.
template <class Out, class Value>
void store_range(Out* out, std::int64_t begin, std::int64_t end, const Value& value) {
  std::int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) store(out + i, value(i, kLanes));
  if (i < end) store_partial(out + i, value(i, end - i), end - i);
}

template <class Out, class Value>
void write_row(Out* out, std::int64_t n, bool streaming, const Value& value) {
  std::int64_t i = 0;
  if (streaming) {
    i = elements_to_alignment(out, n);
    store_range(out, 0, i, value);
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      const F first = value(i, kLanes), second = value(i + kLanes, kLanes);
      stream_pair(out + i, first, second);
    }
    stream_fence();
  }
  store_range(out, i, n, value);
}

template <class In, class Out>
void gradient(const void* data, void* out, std::int64_t n, const GradientTerms& terms, bool streaming) {
  const In* row = static_cast<const In*>(data);
  const F scale = set1(terms.scale), offset = set1(terms.max);
  const F constant = set1(terms.constant), linear = set1(terms.linear);
  write_row(static_cast<Out*>(out), n, streaming, [&](std::int64_t i, std::int64_t count) {
    const F z = count < kLanes ? load_partial(row + i, count) : load(row + i);
    const F x = clamp_low(mul(sub(z, offset), scale));
    return mul(exp_clamped(x), fma(linear, x, constant));
  });
}

template <class In, class Out>
void pair_gradient(const void* data, const void* ref_data, void* out, std::int64_t n,
                   const GradientTerms& terms, bool streaming) {
  const In* row = static_cast<const In*>(data);
  const In* ref = static_cast<const In*>(ref_data);
  const F scale = set1(terms.scale), offset = set1(terms.max);
  const F ref_scale = set1(terms.ref_scale), ref_offset = set1(terms.ref_max);
  const F constant = set1(terms.constant), linear = set1(terms.linear);
  const F cross = set1(terms.cross), reference = set1(terms.reference);
  write_row(static_cast<Out*>(out), n, streaming, [&](std::int64_t i, std::int64_t count) {
    const F z = count < kLanes ? load_partial(row + i, count) : load(row + i);
    const F u = count < kLanes ? load_partial(ref + i, count) : load(ref + i);
    const F x = clamp_low(mul(sub(z, offset), scale));
    const F xr = mul(sub(u, ref_offset), ref_scale), xrc = clamp_low(xr);
    const F e = exp_clamped(x);
    const F own = zero_where_zero(e, mul(e, fma(cross, xr, fma(linear, x, constant))));
    return fma(reference, exp_clamped(xrc), own);
  });
}

}  // namespace

extern const RowKernels kernels;
const RowKernels kernels = {
    RAPO_NAME(RAPO_ISA),
    {stats<float>, stats<BF16>, stats<F16>},
    {pair_stats<float>, pair_stats<BF16>, pair_stats<F16>},
    {{gradient<float, float>, gradient<float, float>},
     {gradient<BF16, BF16>, gradient<BF16, float>},
     {gradient<F16, F16>, gradient<F16, float>}},
    {{pair_gradient<float, float>, pair_gradient<float, float>},
     {pair_gradient<BF16, BF16>, pair_gradient<BF16, float>},
     {pair_gradient<F16, F16>, pair_gradient<F16, float>}},
};

}  // namespace RAPO_ISA
}  // namespace rapo
