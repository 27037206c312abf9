// The work of a block of threads on a row of logits: the sums over the row, and the gradient written from
// them. This is device code; all threads of the block call these functions together.
#pragma once

#include <cstdint>

#include "../dtypes.h"
#include "../row_math.h"
#include "platform.h"

namespace rapo::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2E = 1.44269504088896340736f;
constexpr double kLn2 = 0.69314718055994530942;
constexpr float kMinusInfinity = -HUGE_VALF;

/// An element type: converts 16 bytes to numbers and back.
template <class T>
struct Element;

template <>
struct Element<float> {
  static constexpr int kWidth = 4;
  static constexpr std::uint32_t kMinusInfinityWord = 0xff800000u;
  RAPO_DEVICE static float widen(float x) { return x; }
  RAPO_DEVICE static float narrow(float x) { return x; }
  RAPO_DEVICE static void unpack(const uint4& w, float* x) {
    x[0] = bits_to_float(w.x), x[1] = bits_to_float(w.y), x[2] = bits_to_float(w.z),
    x[3] = bits_to_float(w.w);
  }
  RAPO_DEVICE static uint4 pack(const float* x) {
    return {float_to_bits(x[0]), float_to_bits(x[1]), float_to_bits(x[2]), float_to_bits(x[3])};
  }
};

struct BF16 {
  std::uint16_t bits;
};

template <>
struct Element<BF16> {
  static constexpr int kWidth = 8;
  static constexpr std::uint32_t kMinusInfinityWord = 0xff80ff80u;
  RAPO_DEVICE static float widen(BF16 x) { return bfloat16_to_float(x.bits); }
  RAPO_DEVICE static BF16 narrow(float x) { return {static_cast<std::uint16_t>(to_bfloat16x2(x, 0))}; }
  RAPO_DEVICE static void unpack(const uint4& w, float* x) {
    const std::uint32_t words[4] = {w.x, w.y, w.z, w.w};
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = bits_to_float(words[i] << 16);
      x[2 * i + 1] = bits_to_float(words[i] & 0xffff0000u);
    }
  }
  RAPO_DEVICE static uint4 pack(const float* x) {
    return {to_bfloat16x2(x[0], x[1]), to_bfloat16x2(x[2], x[3]), to_bfloat16x2(x[4], x[5]),
            to_bfloat16x2(x[6], x[7])};
  }
};

struct F16 {
  std::uint16_t bits;
};

template <>
struct Element<F16> {
  static constexpr int kWidth = 8;
  static constexpr std::uint32_t kMinusInfinityWord = 0xfc00fc00u;
  RAPO_DEVICE static float widen(F16 x) { return half_to_float(x.bits); }
  RAPO_DEVICE static F16 narrow(float x) { return {static_cast<std::uint16_t>(to_float16x2(x, 0))}; }
  RAPO_DEVICE static void unpack(const uint4& w, float* x) {
    const std::uint32_t words[4] = {w.x, w.y, w.z, w.w};
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = half_to_float(static_cast<std::uint16_t>(words[i]));
      x[2 * i + 1] = half_to_float(static_cast<std::uint16_t>(words[i] >> 16));
    }
  }
  RAPO_DEVICE static uint4 pack(const float* x) {
    return {to_float16x2(x[0], x[1]), to_float16x2(x[2], x[3]), to_float16x2(x[4], x[5]),
            to_float16x2(x[6], x[7])};
  }
};

/// The parts of a row: single elements up to the first address that is a multiple of 16, then vectors, then
/// the remaining elements.
struct Partition {
  int head, tail;        // elements
  std::int64_t vectors;  // of 16 bytes

  template <class T>
  RAPO_DEVICE Partition(const T* row, std::int64_t n) {
    const auto misaligned = static_cast<int>(reinterpret_cast<std::uintptr_t>(row) % 16);
    const int to_boundary = misaligned == 0 ? 0 : (16 - misaligned) / static_cast<int>(sizeof(T));
    head = to_boundary < n ? to_boundary : static_cast<int>(n);
    vectors = (n - head) / Element<T>::kWidth;
    tail = static_cast<int>(n - head - vectors * Element<T>::kWidth);
  }
};

/// A block's rank in its cluster, and the cluster's number of blocks.
struct Team {
  int rank = 0, blocks = 1;
};

/// The vectors of a row that one block of a cluster processes. The first block also has the head, the last
/// block the tail.
struct Share {
  std::int64_t begin, end;
  bool head, tail;

  RAPO_DEVICE Share(const Partition& part, Team team) {
    const std::int64_t each = (part.vectors + team.blocks - 1) / team.blocks;
    begin = each * team.rank < part.vectors ? each * team.rank : part.vectors;
    end = begin + each < part.vectors ? begin + each : part.vectors;
    head = team.rank == 0;
    tail = team.rank == team.blocks - 1;
  }
};

RAPO_DEVICE bool is_aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

/// Loads one vector of a row. `aligned`: whether p is a multiple of 16.
template <class T, bool kLast>
RAPO_DEVICE void load_vector(const T* p, bool aligned, float* x) {
  if (aligned) {
    Element<T>::unpack(kLast ? load16_last(p) : load16(p), x);
  } else {
    for (int i = 0; i < Element<T>::kWidth; ++i) x[i] = Element<T>::widen(load1(p + i));
  }
}

template <class T, int kCount>
RAPO_DEVICE void store_vector(T* p, bool aligned, const float* x) {
  if (aligned) {
    for (int i = 0; i < kCount; i += Element<T>::kWidth) store16(p + i, Element<T>::pack(x + i));
  } else {
    for (int i = 0; i < kCount; ++i) store1(p + i, Element<T>::narrow(x[i]));
  }
}

// From here on x is in powers of two: x = (z - offset) * scale * log2 e, and the sums of e^x x are multiplied
// by ln 2 at the end. The offset is a logit of the row. It is raised only when another logit exceeds it by
// 2^kSlack in e^x, so that sums are hardly ever rescaled and e^x is at most 2^kSlack.
constexpr float kSlack = 8;
constexpr float kLowest = -200;  // 2^-200 is 0 in float32

struct Online {
  float offset = kMinusInfinity;
  double sum = 0, weighted = 0;  // Σ e^x, Σ e^x x

  /// Raises the offset to `to`. Returns the amount by which x falls; 0 if nothing has been summed yet. It is
  /// a double, which cannot overflow: masks made of the lowest float are common.
  RAPO_DEVICE double raise(float to, float k) {
    double delta = 0;
    if (offset > kMinusInfinity) {
      delta = (static_cast<double>(to) - offset) * k;
      const double f = exp2_approx(static_cast<float>(-delta));
      weighted = f * (weighted - delta * sum);
      sum *= f;
    }
    offset = to;
    return delta;
  }
  /// What is subtracted from a logit: 0 while all logits are -inf, so that the difference stays -inf and does
  /// not become NaN.
  RAPO_DEVICE float subtrahend() const { return offset == kMinusInfinity ? 0 : offset; }
};

/// Adds kCount logits. The maximum ignores NaNs; they show in the sums, as +inf does.
template <int kCount>
RAPO_DEVICE void accumulate(Online& s, const float (&z)[kCount], float k) {
  float top = z[0];
  for (int i = 1; i < kCount; ++i) top = fmaxf(top, z[i]);
  if ((top - s.offset) * k > kSlack) s.raise(top, k);
  const float offset = s.subtrahend();
  float sum[2] = {0, 0}, weighted[2] = {0, 0};
  for (int i = 0; i < kCount; ++i) {
    const float x = max_keep_nan((z[i] - offset) * k, kLowest), e = exp2_approx(x);
    sum[i % 2] += e;
    weighted[i % 2] = fmaf(e, x, weighted[i % 2]);
  }
  s.sum += sum[0] + sum[1];
  s.weighted += weighted[0] + weighted[1];
}

/// Policy (p) and reference (r), with the cross sums Σ e^{x_r} (x_r - x_p) and Σ e^{x_p} (x_p - x_r).
struct OnlinePair {
  Online p, r;
  double forward = 0, reverse = 0;

  RAPO_DEVICE void raise_p(float to, float k) {
    const double before = p.sum;
    const bool none = p.offset == kMinusInfinity;
    const double delta = p.raise(to, k);
    if (!none) reverse = exp2_approx(static_cast<float>(-delta)) * (reverse - delta * before);
    forward += delta * r.sum;
  }
  RAPO_DEVICE void raise_r(float to, float k) {
    const double before = r.sum;
    const bool none = r.offset == kMinusInfinity;
    const double delta = r.raise(to, k);
    if (!none) forward = exp2_approx(static_cast<float>(-delta)) * (forward - delta * before);
    reverse += delta * p.sum;
  }
};

template <int kCount>
RAPO_DEVICE void accumulate(OnlinePair& s, const float (&z)[kCount], const float (&u)[kCount], float k,
                            float ref_k) {
  float top = z[0], ref_top = u[0];
  for (int i = 1; i < kCount; ++i) {
    top = fmaxf(top, z[i]);
    ref_top = fmaxf(ref_top, u[i]);
  }
  if ((top - s.p.offset) * k > kSlack) s.raise_p(top, k);
  if ((ref_top - s.r.offset) * ref_k > kSlack) s.raise_r(ref_top, ref_k);
  const float offset = s.p.subtrahend(), ref_offset = s.r.subtrahend();
  float p_sum = 0, p_weighted = 0, r_sum = 0, forward = 0, reverse = 0;
  for (int i = 0; i < kCount; ++i) {
    const float x = (z[i] - offset) * k, xr = (u[i] - ref_offset) * ref_k;
    const float xc = max_keep_nan(x, kLowest);
    const float e = exp2_approx(xc), er = exp2_approx(max_keep_nan(xr, kLowest));
    p_sum += e;
    p_weighted = fmaf(e, xc, p_weighted);
    r_sum += er;
    // x is not clamped here: where one distribution has mass, the other one may be far below the clamp, or
    // -inf.
    if (er != 0) forward = fmaf(er, xr - x, forward);
    if (e != 0) reverse = fmaf(e, x - xr, reverse);
  }
  s.p.sum += p_sum;
  s.p.weighted += p_weighted;
  s.r.sum += r_sum;
  s.forward += forward;
  s.reverse += reverse;
}

/// Largest number of threads in a block: with more, the registers of a thread could not hold what a row
/// needs.
constexpr int kRowThreads = 512;
/// Threads of a block that keeps a row in shared memory; two such blocks share a multiprocessor.
constexpr int kResidentThreads = 256;

/// The number of vectors that a thread loads at once.
constexpr int kInFlight = 4;
constexpr int kPairInFlight = 2;

/// Starts copying a block's share of a row to shared memory. Each thread copies only what it will read
/// itself.
template <class T>
RAPO_DEVICE void fetch_share(const T* row, std::int64_t n, Team team, SharedPointer<uint4> slots) {
  const Partition part(row, n);
  const Share share(part, team);
  const T* body = row + part.head;
  for (std::int64_t j = share.begin + threadIdx.x; j < share.end; j += blockDim.x) {
    async_copy16(slots + (j - share.begin), body + j * Element<T>::kWidth);
  }
  async_commit();
}

RAPO_DEVICE SharedPointer<uint4> no_slots() { return SharedPointer<uint4>{0}; }

/// This thread's part of the sums over a row, or over its block's share of the row. kResident: the share is
/// in `slots`.
template <class T, bool kLast, bool kResident = false>
RAPO_DEVICE Online read_row(const T* row, std::int64_t n, float k, Team team, SharedPointer<uint4> slots) {
  constexpr int kWidth = Element<T>::kWidth;
  constexpr auto kNothing = Element<T>::kMinusInfinityWord;
  const Partition part(row, n);
  const Share share(part, team);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  Online s;
  if (share.head && thread < part.head) {
    const float z[1] = {Element<T>::widen(load1(row + thread))};
    accumulate(s, z, k);
  }
  const T* body = row + part.head;
  for (std::int64_t j = share.begin + thread; j < share.end; j += kInFlight * threads) {
    uint4 words[kInFlight];
    for (int i = 0; i < kInFlight; ++i) {
      const std::int64_t at = j + i * threads;
      words[i] = uint4{kNothing, kNothing, kNothing, kNothing};
      if (at < share.end) {
        if constexpr (kResident) {
          words[i] = slots[at - share.begin];
        } else {
          words[i] = kLast ? load16_last(body + at * kWidth) : load16(body + at * kWidth);
        }
      }
    }
    float z[kInFlight * kWidth];
    for (int i = 0; i < kInFlight; ++i) Element<T>::unpack(words[i], z + i * kWidth);
    accumulate(s, z, k);
  }
  if (share.tail && thread < part.tail) {
    const float z[1] = {Element<T>::widen(load1(body + part.vectors * kWidth + thread))};
    accumulate(s, z, k);
  }
  return s;
}

/// The same over two rows. Both are cut where the policy's row is aligned. Only the policy's row can be
/// resident.
template <class T, bool kResident>
RAPO_DEVICE OnlinePair read_pair(const T* row, const T* ref, std::int64_t n, float k, float ref_k, Team team,
                                 SharedPointer<uint4> slots) {
  constexpr int kWidth = Element<T>::kWidth;
  const Partition part(row, n);
  const Share share(part, team);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  OnlinePair s;
  const auto one = [&](std::int64_t at) {
    const float z[1] = {Element<T>::widen(load1(row + at))}, u[1] = {Element<T>::widen(load1(ref + at))};
    accumulate(s, z, u, k, ref_k);
  };
  if (share.head && thread < part.head) one(thread);
  const T *body = row + part.head, *ref_body = ref + part.head;
  const bool aligned = is_aligned(ref_body);
  for (std::int64_t j = share.begin + thread; j < share.end; j += kPairInFlight * threads) {
    float z[kPairInFlight * kWidth], u[kPairInFlight * kWidth];
    for (int i = 0; i < kPairInFlight; ++i) {
      const std::int64_t at = j + i * threads;
      if (at < share.end) {
        if constexpr (kResident) {
          Element<T>::unpack(slots[at - share.begin], z + i * kWidth);
        } else {
          load_vector<T, false>(body + at * kWidth, true, z + i * kWidth);
        }
        load_vector<T, false>(ref_body + at * kWidth, aligned, u + i * kWidth);
      } else {
        for (int v = 0; v < kWidth; ++v) z[i * kWidth + v] = u[i * kWidth + v] = kMinusInfinity;
      }
    }
    accumulate(s, z, u, k, ref_k);
  }
  if (share.tail && thread < part.tail) one(part.head + part.vectors * kWidth + thread);
  return s;
}

// ---- sums over the block ----

/// Offsets in shared memory, in bytes. The memory from kSharedRows on is free for rows.
constexpr int kSharedTop = 0;                               // float[2][kWarp]: the warps' largest offsets
constexpr int kSharedSums = kSharedTop + 2 * kWarp * 4;     // double[4][kWarp]: the warps' sums
constexpr int kSharedPlan = kSharedSums + 4 * kWarp * 8;    // RowPlan
constexpr int kSharedClusterTop = kSharedPlan + 64;         // float[2]: the block's, for its cluster
constexpr int kSharedClusterSums = kSharedClusterTop + 16;  // double[4]
constexpr int kSharedRows = kSharedClusterSums + 48;

RAPO_DEVICE float warp_max(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

RAPO_DEVICE double warp_sum(double x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

RAPO_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
RAPO_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

/// The largest value in the block: put_max(), a barrier, then get_max() in every thread. slot is 0 or 1; it
/// may be used again after a second barrier.
RAPO_DEVICE void put_max(float x, int slot) {
  x = warp_max(x);
  if (lane_index() == 0) shared_memory<float>(kSharedTop)[slot * kWarp + warp_index()] = x;
}
RAPO_DEVICE float get_max(int slot) {
  const bool some = lane_index() < static_cast<int>(blockDim.x) / kWarp;
  float x = kMinusInfinity;
  if (some) x = shared_memory<float>(kSharedTop)[slot * kWarp + lane_index()];
  return warp_max(x);
}

/// The sum over the block, which its first warp gets: put_sum(), a barrier, then get_sum(). The order of
/// additions depends only on the size of the block.
RAPO_DEVICE void put_sum(double x, int slot) {
  x = warp_sum(x);
  if (lane_index() == 0) shared_memory<double>(kSharedSums)[slot * kWarp + warp_index()] = x;
}
RAPO_DEVICE double get_sum(int slot) {
  const bool some = lane_index() < static_cast<int>(blockDim.x) / kWarp;
  double x = 0;
  if (some) x = shared_memory<double>(kSharedSums)[slot * kWarp + lane_index()];
  return warp_sum(x);
}

/// Extends the block's maxima to those of the cluster. All threads call this together.
RAPO_DEVICE void cluster_max(float& x, float& y, Team team) {
  const auto own = shared_memory<float>(kSharedClusterTop);
  if (threadIdx.x == 0) {
    own[0] = x;
    own[1] = y;
  }
  cluster_sync();
  for (int rank = 0; rank < team.blocks; ++rank) {
    x = fmaxf(x, load_remote(own, rank));
    y = fmaxf(y, load_remote(own + 1, rank));
  }
}

/// Extends the block's sums to those of the cluster, added in the order of the blocks. Thread 0 gets the
/// result.
template <int kCount>
RAPO_DEVICE void cluster_sum(double (&sums)[kCount], Team team) {
  const auto own = shared_memory<double>(kSharedClusterSums);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kCount; ++i) own[i] = sums[i];
  }
  cluster_sync();
  if (threadIdx.x != 0) return;
  for (int i = 0; i < kCount; ++i) sums[i] = 0;
  for (int rank = 0; rank < team.blocks; ++rank) {
    for (int i = 0; i < kCount; ++i) sums[i] += load_remote(own + i, rank);
  }
}

/// Combines the threads' sums to the row's sums, which thread 0 gets. One more barrier is needed before
/// shared memory is used for the next reduction.
template <bool kCluster = false>
RAPO_DEVICE RowStats block_stats(Online s, float k, Team team = {}) {
  put_max(s.offset, 0);
  __syncthreads();
  float top = get_max(0), none = kMinusInfinity;
  if constexpr (kCluster) cluster_max(top, none, team);
  s.raise(top, k);
  put_sum(s.sum, 0);
  put_sum(s.weighted, 1);
  __syncthreads();
  double sums[2] = {0, 0};
  if (warp_index() == 0) {
    for (int i = 0; i < 2; ++i) sums[i] = get_sum(i);
  }
  if constexpr (kCluster) cluster_sum(sums, team);
  return {top, sums[0], sums[1] * kLn2};
}

/// The cross sum that a full penalty needs.
RAPO_DEVICE double crossed(const OnlinePair& s, Penalty penalty) {
  return penalty == Penalty::kReverseFull ? s.reverse : s.forward;
}

template <bool kCluster = false>
RAPO_DEVICE PairStats block_stats(OnlinePair s, float k, float ref_k, Penalty penalty, Team team = {}) {
  put_max(s.p.offset, 0);
  put_max(s.r.offset, 1);
  __syncthreads();
  float top = get_max(0), ref_top = get_max(1);
  if constexpr (kCluster) cluster_max(top, ref_top, team);
  s.raise_p(top, k);
  s.raise_r(ref_top, ref_k);
  put_sum(s.p.sum, 0);
  put_sum(s.p.weighted, 1);
  put_sum(s.r.sum, 2);
  put_sum(crossed(s, penalty), 3);
  __syncthreads();
  double sums[4] = {0, 0, 0, 0};
  if (warp_index() == 0) {
    for (int i = 0; i < 4; ++i) sums[i] = get_sum(i);
  }
  if constexpr (kCluster) cluster_sum(sums, team);
  return {{top, sums[0], sums[1] * kLn2}, {ref_top, sums[2], 0}, sums[3] * kLn2};
}

// ---- the gradient ----

/// Thread 0 makes it from the row's sums, and every thread writes the gradient from it. Scales and factors of
/// x are in powers of two here. terms.reference is that of the forward KL only.
struct RowPlan {
  GradientTerms terms;
  float cross;  // factor of e^x x_r, for the reverse KL
  std::int64_t token;
  float at_token;  // the gradient's element at the sampled token
  int write;       // 0: the row is not written
};

RAPO_DEVICE float in_powers_of_two(float scale) { return scale * kLog2E; }

/// Converts the terms' scales and factors of x to powers of two.
RAPO_DEVICE RowPlan plan_of(const GradientTerms& terms, Penalty penalty) {
  RowPlan plan = {};
  plan.terms = terms;
  plan.terms.scale = in_powers_of_two(plan.terms.scale);
  plan.terms.ref_scale = in_powers_of_two(plan.terms.ref_scale == 0 ? kFlat : plan.terms.ref_scale);
  plan.terms.linear *= static_cast<float>(kLn2);
  if (penalty == Penalty::kReverseFull) {
    plan.cross = plan.terms.reference * static_cast<float>(kLn2);
    plan.terms.reference = 0;
  }
  return plan;
}

RAPO_DEVICE float gradient_of(const GradientTerms& t, float z) {
  const float x = max_keep_nan((z - t.max) * t.scale, kLowest);
  return exp2_approx(x) * fmaf(t.linear, x, t.constant);
}

RAPO_DEVICE float gradient_of(const GradientTerms& t, float cross, float z, float u) {
  const float x = max_keep_nan((z - t.max) * t.scale, kLowest);
  const float xr = (u - t.ref_max) * t.ref_scale, e = exp2_approx(x);
  const float own = e == 0 ? 0 : e * fmaf(cross, xr, fmaf(t.linear, x, t.constant));
  return fmaf(t.reference, exp2_approx(max_keep_nan(xr, kLowest)), own);
}

/// Writes the gradient of a row, or of a block's share of it. ref is read for full penalties only. In place
/// (out == row), each thread writes only what it has read itself. kResident: the row's share is in `slots`.
template <class In, class Out, bool kPair, bool kResident>
RAPO_DEVICE void write_row(const In* row, const In* ref, Out* out, std::int64_t n, const RowPlan& plan,
                           Team team, SharedPointer<uint4> slots) {
  constexpr int kWidth = Element<In>::kWidth, kAtOnce = kPair || kResident ? kPairInFlight : kInFlight;
  const Partition part(row, n);
  const Share share(part, team);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const auto one = [&](std::int64_t at) {
    const float z = Element<In>::widen(load1(row + at));
    float g;
    if constexpr (kPair) {
      g = gradient_of(plan.terms, plan.cross, z, Element<In>::widen(load1(ref + at)));
    } else {
      g = gradient_of(plan.terms, z);
    }
    store1(out + at, Element<Out>::narrow(at == plan.token ? plan.at_token : g));
  };
  if (share.head && thread < part.head) one(thread);
  const In *body = row + part.head, *ref_body = kPair ? ref + part.head : nullptr;
  Out* out_body = out + part.head;
  const bool ref_aligned = is_aligned(ref_body), out_aligned = is_aligned(out_body);
  const std::int64_t token = plan.token - part.head;
  for (std::int64_t j = share.begin + thread; j < share.end; j += kAtOnce * threads) {
    uint4 words[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i) {
      const std::int64_t at = j + i * threads;
      if (at >= share.end) break;
      if constexpr (kResident) {
        words[i] = slots[at - share.begin];
      } else {
        words[i] = load16_last(body + at * kWidth);
      }
    }
    for (int i = 0; i < kAtOnce; ++i) {
      const std::int64_t at = (j + i * threads) * kWidth;
      if (j + i * threads >= share.end) break;
      float z[kWidth], u[kPair ? kWidth : 1];
      Element<In>::unpack(words[i], z);
      if constexpr (kPair) {
        load_vector<In, true>(ref_body + at, ref_aligned, u);
        for (int v = 0; v < kWidth; ++v) z[v] = gradient_of(plan.terms, plan.cross, z[v], u[v]);
      } else {
        for (int v = 0; v < kWidth; ++v) z[v] = gradient_of(plan.terms, z[v]);
      }
      if (token >= at && token < at + kWidth) {
        for (int v = 0; v < kWidth; ++v) z[v] = token == at + v ? plan.at_token : z[v];
      }
      store_vector<Out, kWidth>(out_body + at, out_aligned, z);
    }
  }
  if (share.tail && thread < part.tail) one(part.head + part.vectors * kWidth + thread);
}

template <class Out>
RAPO_DEVICE void zero_row(Out* out, std::int64_t n) {
  const Partition part(out, n);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (thread < part.head) store1(out + thread, Element<Out>::narrow(0));
  Out* body = out + part.head;
  for (std::int64_t j = thread; j < part.vectors; j += threads) {
    store16(body + j * Element<Out>::kWidth, uint4{0, 0, 0, 0});
  }
  if (thread < part.tail)
    store1(body + part.vectors * Element<Out>::kWidth + thread, Element<Out>::narrow(0));
}

}  // namespace rapo::cuda
