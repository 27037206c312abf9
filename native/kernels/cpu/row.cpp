// The row kernels, written on the registers of native/simd. Compiled once per instruction set; RAPO_ISA is
// the name of the set and of its namespace.
#include "row.h"

#include <cmath>

#include "simd/exp.h"

namespace rapo {
namespace RAPO_ISA {
namespace {

using namespace simd::RAPO_ISA;

// The terms of a block are added up in floats, 64 to a sum, before the sums are added in double.
constexpr std::int64_t kPairBlock = 64 * kLanes;
constexpr std::int64_t kBlock = 2 * kPairBlock;  // two sums per lane
// The maximum of the earlier blocks is kept unless a new maximum exceeds it by more than this.
constexpr float kHeadroom = 1;
constexpr double kInfinity = __builtin_inf();

/// `count` elements from i on; the remaining lanes are -inf.
template <class T>
F load_some(const T* row, std::int64_t i, std::int64_t count) {
  return count < kLanes ? load_partial(row + i, count) : load(row + i);
}

/// The largest element. NaNs are ignored here; they show in the sums.
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
  for (; i < n; i += kLanes) m0 = max(load_some(row, i, n - i), m0);
  return max_lanes(max(max(m0, m1), max(m2, m3)));
}

/// A row's logits as x = (z - offset) * scale. offset is about the largest logit so far. While all logits are
/// -inf it is 0, so that z - offset stays -inf.
template <class T>
struct Row {
  const T* data;
  float scale;
  float offset = 0;
  RowStats stats{-kInfinity, 0, 0};

  Row(const void* data, float scale) : data(static_cast<const T*>(data)), scale(scale) {}

  bool empty() const { return stats.max == -kInfinity; }

  /// Whether a block whose largest x is `top` requires a larger offset.
  bool exceeded_by(float top) const { return top > (empty() ? -__builtin_inff() : kHeadroom); }

  /// Raises the offset to the largest element of a block. Returns the amount by which x falls; 0 if nothing
  /// has been summed yet.
  double raise(std::int64_t begin, std::int64_t end) {
    const auto max = static_cast<double>(block_max(data + begin, end - begin));
    if (!(max > stats.max)) return 0;
    double delta = 0;
    if (!empty()) {
      delta = (max - stats.max) * static_cast<double>(scale);
      const double k = std::exp(-delta);
      stats.weighted = k * (stats.weighted - delta * stats.sum);
      stats.sum *= k;
    }
    stats.max = max;
    offset = static_cast<float>(max);
    return delta;
  }
};

template <class T, bool kWeighted>
RowStats stats(const void* data, std::int64_t n, float scale) {
  Row<T> row(data, scale);
  const F vscale = set1(scale);
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = n - begin < kBlock ? n : begin + kBlock;
    if (row.empty()) row.raise(begin, end);
    for (bool again = false;; again = true) {
      const F offset = set1(row.offset);
      F sum0 = set1(0), sum1 = sum0, weighted0 = sum0, weighted1 = sum0;
      F top0 = set1(-__builtin_inff()), top1 = top0;
      const auto add_up = [&](F z, F& s, F& w, F& top) {
        const F x = mul(sub(z, offset), vscale), clamped = clamp_low(x), e = exp_clamped(clamped);
        top = max(x, top);
        s = add(s, e);
        if (kWeighted) w = fma(e, clamped, w);
      };
      std::int64_t i = begin;
      for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
        add_up(load(row.data + i), sum0, weighted0, top0);
        add_up(load(row.data + i + kLanes), sum1, weighted1, top1);
      }
      for (; i < end; i += kLanes) add_up(load_some(row.data, i, end - i), sum0, weighted0, top0);
      if (!again && row.exceeded_by(max_lanes(max(top0, top1)))) {
        row.raise(begin, end);
        continue;
      }
      row.stats.sum += sum_lanes(add(sum0, sum1));
      if (kWeighted) row.stats.weighted += sum_lanes(add(weighted0, weighted1));
      break;
    }
  }
  return row.stats;
}

template <class T, Penalty kPenalty>
PairStats pair_stats(const void* policy, const void* reference, std::int64_t n, float scale,
                     float ref_scale) {
  constexpr bool kReverse = kPenalty == Penalty::kReverseFull;
  Row<T> p(policy, scale), r(reference, ref_scale);
  double cross = 0;
  const F vscale = set1(scale), vref_scale = set1(ref_scale);
  const auto raise = [&](std::int64_t begin, std::int64_t end) {
    // Raising the maximum of a row by delta scales its e^x by e^-delta and shifts its x by -delta.
    const double delta_p = p.raise(begin, end);
    cross = kReverse ? std::exp(-delta_p) * cross - delta_p * p.stats.sum : cross + delta_p * r.stats.sum;
    const double delta_r = r.raise(begin, end);
    cross = kReverse ? cross + delta_r * p.stats.sum : std::exp(-delta_r) * cross - delta_r * r.stats.sum;
  };
  for (std::int64_t begin = 0; begin < n; begin += kPairBlock) {
    const std::int64_t end = n - begin < kPairBlock ? n : begin + kPairBlock;
    if (p.empty() || r.empty()) raise(begin, end);
    for (bool again = false;; again = true) {
      const F offset = set1(p.offset), ref_offset = set1(r.offset);
      F p_sum = set1(0), p_weighted = p_sum, r_sum = p_sum, crossed = p_sum;
      F p_top = set1(-__builtin_inff()), r_top = p_top;
      for (std::int64_t i = begin; i < end; i += kLanes) {
        const F z = load_some(p.data, i, end - i), u = load_some(r.data, i, end - i);
        const F x = mul(sub(z, offset), vscale), xr = mul(sub(u, ref_offset), vref_scale);
        const F clamped = clamp_low(x), e = exp_clamped(clamped), er = exp_clamped(clamp_low(xr));
        p_top = max(x, p_top);
        r_top = max(xr, r_top);
        p_sum = add(p_sum, e);
        p_weighted = fma(e, clamped, p_weighted);
        r_sum = add(r_sum, er);
        // x is not clamped here: where one distribution has mass, the other one may be far below the clamp,
        // or -inf.
        if (kReverse) {
          crossed = add(crossed, zero_where_zero(e, mul(e, sub(x, xr))));
        } else {
          crossed = add(crossed, zero_where_zero(er, mul(er, sub(xr, x))));
        }
      }
      if (!again && (p.exceeded_by(max_lanes(p_top)) || r.exceeded_by(max_lanes(r_top)))) {
        raise(begin, end);
        continue;
      }
      p.stats.sum += sum_lanes(p_sum);
      p.stats.weighted += sum_lanes(p_weighted);
      r.stats.sum += sum_lanes(r_sum);
      cross += sum_lanes(crossed);
      break;
    }
  }
  return {p.stats, r.stats, cross};
}

/// Number of elements before the first one that is aligned for stream_pair; n if none is.
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

/// Writes the row from its end to its start, since the end was read last and is still in the second-level
/// cache.
template <class Out, class Value>
void write_row(Out* out, std::int64_t n, bool streaming, const Value& value) {
  const std::int64_t begin = streaming ? elements_to_alignment(out, n) : 0;
  std::int64_t i = n - (n - begin) % (2 * kLanes);
  store_range(out, i, n, value);
  while (i > begin) {
    i -= 2 * kLanes;
    F first = value(i, kLanes), second = value(i + kLanes, kLanes);
    if (streaming) {
      // Both vectors are computed before either is written: a cache line that reaches memory in two halves
      // costs twice.
      keep_together(first, second);
      stream_pair(out + i, first, second);
    } else {
      store(out + i, first);
      store(out + i + kLanes, second);
    }
  }
  store_range(out, 0, begin, value);
  if (streaming) stream_fence();
}

template <class In, class Out>
void gradient(const void* data, void* out, std::int64_t n, const GradientTerms& terms, bool streaming) {
  const In* row = static_cast<const In*>(data);
  const F scale = set1(terms.scale), offset = set1(terms.max);
  const F constant = set1(terms.constant), linear = set1(terms.linear);
  write_row(static_cast<Out*>(out), n, streaming, [&](std::int64_t i, std::int64_t count) {
    const F x = clamp_low(mul(sub(load_some(row, i, count), offset), scale));
    return mul(exp_clamped(x), fma(linear, x, constant));
  });
}

template <class In, class Out, Penalty kPenalty>
void pair_gradient(const void* data, const void* ref_data, void* out, std::int64_t n,
                   const GradientTerms& terms, bool streaming) {
  constexpr bool kReverse = kPenalty == Penalty::kReverseFull;
  const In* row = static_cast<const In*>(data);
  const In* ref = static_cast<const In*>(ref_data);
  const F scale = set1(terms.scale), offset = set1(terms.max);
  const F ref_scale = set1(terms.ref_scale), ref_offset = set1(terms.ref_max);
  const F constant = set1(terms.constant), linear = set1(terms.linear), reference = set1(terms.reference);
  write_row(static_cast<Out*>(out), n, streaming, [&](std::int64_t i, std::int64_t count) {
    const F x = clamp_low(mul(sub(load_some(row, i, count), offset), scale)), e = exp_clamped(x);
    const F xr = mul(sub(load_some(ref, i, count), ref_offset), ref_scale);
    const F own = fma(linear, x, constant);
    if (kReverse) return zero_where_zero(e, mul(e, fma(reference, xr, own)));
    return fma(reference, exp_clamped(clamp_low(xr)), mul(e, own));
  });
}

}  // namespace

extern const RowKernels kernels;
const RowKernels kernels = {
    kName,
    {stats<float, false>, stats<BFloat16, false>, stats<Float16, false>},
    {stats<float, true>, stats<BFloat16, true>, stats<Float16, true>},
    {
#define RAPO_PAIR(penalty)                                                      \
  {pair_stats<float, Penalty::penalty>, pair_stats<BFloat16, Penalty::penalty>, \
   pair_stats<Float16, Penalty::penalty>},
        RAPO_FULL_PENALTIES(RAPO_PAIR)
#undef RAPO_PAIR
    },
    {{gradient<float, float>, gradient<float, float>},
     {gradient<BFloat16, BFloat16>, gradient<BFloat16, float>},
     {gradient<Float16, Float16>, gradient<Float16, float>}},
    {
#define RAPO_PAIR(penalty)                                                                                  \
  {{pair_gradient<float, float, Penalty::penalty>, pair_gradient<float, float, Penalty::penalty>},          \
   {pair_gradient<BFloat16, BFloat16, Penalty::penalty>, pair_gradient<BFloat16, float, Penalty::penalty>}, \
   {pair_gradient<Float16, Float16, Penalty::penalty>, pair_gradient<Float16, float, Penalty::penalty>}},
        RAPO_FULL_PENALTIES(RAPO_PAIR)
#undef RAPO_PAIR
    },
};

}  // namespace RAPO_ISA
}  // namespace rapo
