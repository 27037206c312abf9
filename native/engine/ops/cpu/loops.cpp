// Compiled once per instruction set, each time with another RAPO_ISA: see CMakeLists.txt and loops.h.
// Vectors are GCC/clang vector extensions of 16 floats; the compiler splits them where registers are
// narrower.
#include "loops.h"

#define RAPO_STRING2(x) #x
#define RAPO_STRING(x) RAPO_STRING2(x)

namespace rapo::loops {
namespace RAPO_ISA {
namespace {

using i64 = std::int64_t;
constexpr i64 kLanes = 16;
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
typedef float Vec __attribute__((vector_size(64)));
typedef std::int32_t IVec __attribute__((vector_size(64)));
typedef std::uint32_t UVec __attribute__((vector_size(64)));
typedef std::uint16_t HVec __attribute__((vector_size(32)));

template <class Mask>
INLINE Vec choose(Mask mask, Vec yes, Vec no) {
  return mask ? yes : no;
}
#else
// Two halves by hand: GCC splits a vector wider than the registers into parts that it keeps in memory.
typedef float Half __attribute__((vector_size(32)));
typedef std::int32_t IHalf __attribute__((vector_size(32)));
typedef std::uint32_t UHalf __attribute__((vector_size(32)));
typedef std::uint16_t HHalf __attribute__((vector_size(16)));

template <class H>
struct Pair {
  H lo, hi;
};
typedef Pair<Half> Vec;
typedef Pair<IHalf> IVec;

#define RAPO_PAIR_OPERATOR(op)                                                  \
  INLINE Vec operator op(Vec a, Vec b) { return {a.lo op b.lo, a.hi op b.hi}; } \
  INLINE Vec operator op(Vec a, float b) { return {a.lo op b, a.hi op b}; }     \
  INLINE Vec operator op(float a, Vec b) { return {a op b.lo, a op b.hi}; }
RAPO_PAIR_OPERATOR(+)
RAPO_PAIR_OPERATOR(-)
RAPO_PAIR_OPERATOR(*)
RAPO_PAIR_OPERATOR(/)
#undef RAPO_PAIR_OPERATOR
#define RAPO_PAIR_COMPARISON(op)                                                 \
  INLINE IVec operator op(Vec a, Vec b) { return {a.lo op b.lo, a.hi op b.hi}; } \
  INLINE IVec operator op(Vec a, float b) { return {a.lo op b, a.hi op b}; }     \
  INLINE IVec operator op(IVec a, std::int32_t b) { return {a.lo op b, a.hi op b}; }
RAPO_PAIR_COMPARISON(<)
RAPO_PAIR_COMPARISON(>)
RAPO_PAIR_COMPARISON(==)
#undef RAPO_PAIR_COMPARISON
INLINE Vec operator-(Vec a) { return {-a.lo, -a.hi}; }
INLINE void operator+=(Vec& a, Vec b) {
  a.lo += b.lo;
  a.hi += b.hi;
}
INLINE Vec choose(IVec mask, Vec yes, Vec no) { return {mask.lo ? yes.lo : no.lo, mask.hi ? yes.hi : no.hi}; }
#endif

INLINE Vec splat(float x) { return Vec{} + x; }

#if defined(__AVX512F__)
INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
#else
INLINE Half load_half(const float* p) {
  Half v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
INLINE Vec load(const float* p) { return {load_half(p), load_half(p + 8)}; }
INLINE void store(float* p, Vec v) {
  __builtin_memcpy(p, &v.lo, sizeof v.lo);
  __builtin_memcpy(p + 8, &v.hi, sizeof v.hi);
}
#endif

/// bfloat16 in the upper halves of 32 bits, and back: rounded to nearest even; NaN would overflow into the
/// sign, so it is set apart.
template <class F, class U, class I, class H>
INLINE F widened(const BFloat16* p) {
  H h;
  __builtin_memcpy(&h, p, sizeof h);
  const U u = __builtin_convertvector(h, U) << 16;
  F v;
  __builtin_memcpy(&v, &u, sizeof v);
  return v;
}
template <class F, class U, class I, class H>
INLINE void store_narrowed(BFloat16* p, F v) {
  U u;
  __builtin_memcpy(&u, &v, sizeof u);
  const U rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  const I nan = v != v;
  const U bits = (rounded & ~reinterpret_cast<const U&>(nan)) | (reinterpret_cast<const U&>(nan) & 0x7FC0u);
  const H h = __builtin_convertvector(bits, H);
  __builtin_memcpy(p, &h, sizeof h);
}
#if defined(__AVX512F__)
INLINE Vec load(const BFloat16* p) { return widened<Vec, UVec, IVec, HVec>(p); }
INLINE void store(BFloat16* p, Vec v) { store_narrowed<Vec, UVec, IVec, HVec>(p, v); }
/// 2^n for whole n.
INLINE Vec power_of_two(Vec n) {
  const IVec bits = (__builtin_convertvector(n, IVec) + 127) << 23;
  Vec scale;
  __builtin_memcpy(&scale, &bits, sizeof scale);
  return scale;
}
#else
INLINE Vec load(const BFloat16* p) {
  return {widened<Half, UHalf, IHalf, HHalf>(p), widened<Half, UHalf, IHalf, HHalf>(p + 8)};
}
INLINE void store(BFloat16* p, Vec v) {
  store_narrowed<Half, UHalf, IHalf, HHalf>(p, v.lo);
  store_narrowed<Half, UHalf, IHalf, HHalf>(p + 8, v.hi);
}
INLINE Vec power_of_two(Vec n) {
  const IHalf lo = (__builtin_convertvector(n.lo, IHalf) + 127) << 23;
  const IHalf hi = (__builtin_convertvector(n.hi, IHalf) + 127) << 23;
  Vec scale;
  __builtin_memcpy(&scale.lo, &lo, sizeof lo);
  __builtin_memcpy(&scale.hi, &hi, sizeof hi);
  return scale;
}
#endif

/// Lanes 0 .. count - 1 of v, `other` in those behind them.
INLINE Vec first_lanes(Vec v, i64 count, float other) {
#if defined(__AVX512F__)
  const IVec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
  const IVec lane = {{0, 1, 2, 3, 4, 5, 6, 7}, {8, 9, 10, 11, 12, 13, 14, 15}};
#endif
  return choose(lane < static_cast<std::int32_t>(count), v, splat(other));
}

INLINE float one(const float* p) { return *p; }
INLINE float one(const BFloat16* p) {
  const std::uint32_t u = static_cast<std::uint32_t>(p->bits) << 16;
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}
INLINE void put(float* p, float x) { *p = x; }
INLINE void put(BFloat16* p, float x) {
  std::uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  p->bits = static_cast<std::uint16_t>(x != x ? 0x7FC0u : (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

/// The first n < 16 elements, zeros behind them.
template <class T>
INLINE Vec load_part(const T* p, i64 n) {
  float lanes[kLanes];
  for (i64 i = 0; i < kLanes; ++i) lanes[i] = i < n ? one(p + i) : 0.0f;
  return load(lanes);
}
template <class T>
INLINE void store_part(T* p, Vec v, i64 n) {
  float lanes[kLanes];
  store(lanes, v);
  for (i64 i = 0; i < kLanes; ++i) {
    if (i < n) put(p + i, lanes[i]);
  }
}
template <class T>
INLINE Vec load_up_to(const T* p, i64 n) {
  return n >= kLanes ? load(p) : load_part(p, n);
}
template <class T>
INLINE void store_up_to(T* p, Vec v, i64 n) {
  if (n >= kLanes) {
    store(p, v);
  } else {
    store_part(p, v, n);
  }
}

INLINE float sum_lanes(Vec v) {
  typedef float V8 __attribute__((vector_size(32)));
  typedef float V4 __attribute__((vector_size(16)));
  V8 a[2];
  __builtin_memcpy(a, &v, sizeof v);
  a[0] += a[1];
  V4 b[2];
  __builtin_memcpy(b, &a[0], sizeof b);
  b[0] += b[1];
  return (b[0][0] + b[0][2]) + (b[0][1] + b[0][3]);
}

INLINE Vec max_of(Vec a, Vec b) { return choose(a > b, a, b); }

INLINE float max_lanes(Vec v) {
  typedef float V8 __attribute__((vector_size(32)));
  typedef float V4 __attribute__((vector_size(16)));
  V8 a[2];
  __builtin_memcpy(a, &v, sizeof v);
  a[0] = a[0] > a[1] ? a[0] : a[1];
  V4 b[2];
  __builtin_memcpy(b, &a[0], sizeof b);
  b[0] = b[0] > b[1] ? b[0] : b[1];
  const float left = b[0][0] > b[0][2] ? b[0][0] : b[0][2], right = b[0][1] > b[0][3] ? b[0][1] : b[0][3];
  return left > right ? left : right;
}

/// exp, relative error below 2e-7 on [-87.3, 88.3]; arguments beyond are taken to those bounds. NaN stays
/// NaN.
INLINE Vec exp_of(Vec x) {
  x = choose(x < -87.3f, splat(-87.3f), x);
  x = choose(x > 88.3f, splat(88.3f), x);
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (x * 1.44269504088896341f + magic) - magic;
  const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  // Cephes expf.
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * power_of_two(n);
}

template <class T>
void rms_norm(const T* x, const T* w, float eps, i64 channels, T* y, float* rstd, i64 begin, i64 end) {
  const float inverse = 1.0f / static_cast<float>(channels);
  for (i64 row = begin; row < end; ++row) {
    const T* in = x + row * channels;
    T* out = y + row * channels;
    Vec sum{};
    for (i64 c = 0; c < channels; c += kLanes) {
      const Vec v = load_up_to(in + c, channels - c);
      sum += v * v;
    }
    const float r = 1.0f / __builtin_sqrtf(sum_lanes(sum) * inverse + eps);
    if (rstd) rstd[row] = r;
    for (i64 c = 0; c < channels; c += kLanes) {
      const i64 n = channels - c;
      store_up_to(out + c, load_up_to(in + c, n) * r * load_up_to(w + c, n), n);
    }
  }
}

template <class T>
void rms_norm_backward(const T* x, const T* w, const float* rstd, const T* dy, i64 channels, T* dx, float* dw,
                       i64 begin, i64 end) {
  const float inverse = 1.0f / static_cast<float>(channels);
  for (i64 row = begin; row < end; ++row) {
    const T* in = x + row * channels;
    const T* grad = dy + row * channels;
    T* out = dx + row * channels;
    const float r = rstd[row];
    Vec dot{};
    for (i64 c = 0; c < channels; c += kLanes) {
      const i64 n = channels - c;
      dot += load_up_to(in + c, n) * load_up_to(grad + c, n) * load_up_to(w + c, n);
    }
    const float pull = sum_lanes(dot) * inverse * r * r * r;
    for (i64 c = 0; c < channels; c += kLanes) {
      const i64 n = channels - c;
      const Vec v = load_up_to(in + c, n), g = load_up_to(grad + c, n);
      store_up_to(out + c, load_up_to(out + c, n) + g * load_up_to(w + c, n) * r - v * pull, n);
      store_up_to(dw + c, load_up_to(dw + c, n) + g * v * r, n);
    }
  }
}

template <class T>
void swiglu(const T* gate_up, i64 width, T* out, i64 begin, i64 end) {
  for (i64 row = begin; row < end; ++row) {
    const T* gate = gate_up + row * 2 * width;
    const T* up = gate + width;
    T* o = out + row * width;
    for (i64 c = 0; c < width; c += kLanes) {
      const i64 n = width - c;
      const Vec g = load_up_to(gate + c, n);
      store_up_to(o + c, g / (exp_of(-g) + 1.0f) * load_up_to(up + c, n), n);
    }
  }
}

template <class T>
void swiglu_backward(const T* gate_up, const T* dout, i64 width, T* dgate_up, i64 begin, i64 end) {
  for (i64 row = begin; row < end; ++row) {
    const T* gate = gate_up + row * 2 * width;
    const T* up = gate + width;
    const T* d = dout + row * width;
    T* dgate = dgate_up + row * 2 * width;
    T* dup = dgate + width;
    for (i64 c = 0; c < width; c += kLanes) {
      const i64 n = width - c;
      const Vec g = load_up_to(gate + c, n), u = load_up_to(up + c, n), go = load_up_to(d + c, n);
      const Vec sigmoid = 1.0f / (exp_of(-g) + 1.0f);
      const Vec silu = g * sigmoid;
      store_up_to(dup + c, go * silu, n);
      store_up_to(dgate + c, go * u * (sigmoid + silu * (1.0f - sigmoid)), n);
    }
  }
}

INLINE i64 padded(i64 n) { return (n + kLanes - 1) / kLanes * kLanes; }

/// The half-split rotation: (x1, x2) -> (x1 c - x2 s, x2 c + x1 s), then times scale; zeros up to the padded
/// width.
template <class T>
INLINE void rotate(const T* x, const float* cos, const float* sin, i64 head_dim, float scale, float* out) {
  const i64 half = head_dim / 2;
  for (i64 i = 0; i < half; ++i) {
    const float x1 = one(x + i), x2 = one(x + i + half);
    out[i] = (x1 * cos[i] - x2 * sin[i]) * scale;
    out[i + half] = (x2 * cos[i] + x1 * sin[i]) * scale;
  }
  for (i64 i = head_dim; i < padded(head_dim); ++i) out[i] = 0;
}

/// The transpose of rotate().
template <class T>
INLINE void rotate_back(const float* dy, const float* cos, const float* sin, i64 head_dim, float scale,
                        T* out) {
  const i64 half = head_dim / 2;
  for (i64 i = 0; i < half; ++i) {
    const float d1 = dy[i], d2 = dy[i + half];
    put(out + i, (d1 * cos[i] + d2 * sin[i]) * scale);
    put(out + i + half, (d2 * cos[i] - d1 * sin[i]) * scale);
  }
}

template <class T>
INLINE void widen(const T* x, i64 n, float* out) {
  for (i64 i = 0; i < n; ++i) out[i] = one(x + i);
  for (i64 i = n; i < padded(n); ++i) out[i] = 0;
}

template <class T>
INLINE void narrow(const float* x, i64 n, T* out) {
  for (i64 i = 0; i < n; ++i) put(out + i, x[i]);
}

// Queries are taken kQueries at a time, so that each key or value that is loaded serves all of them.
constexpr int kQueries = 4;

/// acc[r] = sum over d of rows[r][d] * columns[d][j .. j + 16); rows (kQueries, dp), columns (head_dim, tp).
INLINE void products(const float* rows, i64 dp, const float* columns, i64 tp, i64 head_dim,
                     Vec acc[kQueries]) {
  for (int r = 0; r < kQueries; ++r) acc[r] = Vec{};
  for (i64 d = 0; d < head_dim; ++d) {
    const Vec k = load(columns + d * tp);
    for (int r = 0; r < kQueries; ++r) acc[r] += k * rows[r * dp + d];
  }
}

/// out[r][:] = scale * sum over j < count of weights[r][j] * values[j][:]; out (kQueries, dp), values (count,
/// dp).
INLINE void mix(const float* weights, i64 tp, const float* values, i64 dp, i64 count,
                const float scale[kQueries], float* out) {
  for (i64 c = 0; c < dp; c += kLanes) {
    Vec acc[kQueries] = {};
    for (i64 j = 0; j < count; ++j) {
      const Vec v = load(values + j * dp + c);
      for (int r = 0; r < kQueries; ++r) acc[r] += v * weights[r * tp + j];
    }
    for (int r = 0; r < kQueries; ++r) store(out + r * dp + c, acc[r] * scale[r]);
  }
}

template <class T>
void attention(const HeadShape& s, const i64* lengths, i64 segments, i64 kv_head, const T* qkv,
               const float* cos, const float* sin, T* out, float* lse, T* kv, float* scratch) {
  const i64 prefix = lengths[0];
  i64 longest = prefix;
  for (i64 b = 1; b < segments; ++b) longest = prefix + lengths[b] > longest ? prefix + lengths[b] : longest;
  const i64 dim = s.head_dim, dp = padded(dim), tp = padded(longest), half = dim / 2;
  const i64 q_size = s.heads * dim, kv_size = s.kv_heads * dim, row_size = q_size + 2 * kv_size;
  const i64 group = s.heads / s.kv_heads;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
  float* keys = scratch;             // (dim, tp), transposed: the prefix's, then the current branch's
  float* values = keys + dim * tp;   // (longest, dp)
  float* q = values + longest * dp;  // (kQueries, dp)
  float* o = q + kQueries * dp;      // (kQueries, dp)
  float* p = o + kQueries * dp;      // (kQueries, tp)
  float* k_row = p + kQueries * tp;  // (dp)

  i64 token = 0;  // first of the segment
  for (i64 segment = 0; segment < segments; token += lengths[segment++]) {
    const i64 start = segment == 0 ? 0 : prefix, stop = start + lengths[segment];  // positions
    const i64 shift = token - start;                                               // token of a position
    for (i64 t = start; t < stop; ++t) {
      const T* k = qkv + (t + shift) * row_size + q_size + kv_head * dim;
      rotate(k, cos + t * half, sin + t * half, dim, 1.0f, k_row);
      if (kv) {
        T* to = kv + (t + shift) * 2 * kv_size + kv_head * dim;
        narrow(k_row, dim, to);
        for (i64 d = 0; d < dim; ++d) to[kv_size + d] = k[kv_size + d];
      }
      for (i64 d = 0; d < dim; ++d) keys[d * tp + t] = k_row[d];
      widen(k + kv_size, dim, values + t * dp);
    }
    for (i64 head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      for (i64 t0 = start; t0 < stop; t0 += kQueries) {
        const int rows = stop - t0 < kQueries ? static_cast<int>(stop - t0) : kQueries;
        for (int r = 0; r < kQueries; ++r) {
          const i64 t = r < rows ? t0 + r : t0;
          rotate(qkv + (t + shift) * row_size + head * dim, cos + t * half, sin + t * half, dim, scale,
                 q + r * dp);
        }
        const i64 last =
            t0 + rows;  // keys 0 .. last - 1 are seen by some row; what lies behind them is masked
        Vec top[kQueries];
        for (int r = 0; r < kQueries; ++r) top[r] = splat(-__builtin_inff());
        for (i64 j = 0; j < last; j += kLanes) {
          Vec acc[kQueries];
          products(q, dp, keys + j, tp, dim, acc);
          for (int r = 0; r < kQueries; ++r) {
            const Vec seen = first_lanes(acc[r], t0 + r + 1 - j, -__builtin_inff());
            top[r] = max_of(seen, top[r]);
            store(p + r * tp + j, seen);
          }
        }
        float inverse[kQueries];
        for (int r = 0; r < kQueries; ++r) {
          const float m = max_lanes(top[r]);
          Vec sum{};
          for (i64 j = 0; j < last; j += kLanes) {
            const Vec score = load(p + r * tp + j);
            const Vec e = choose(score == -__builtin_inff(), Vec{}, exp_of(score - m));
            store(p + r * tp + j, e);
            sum += e;
          }
          const float total = sum_lanes(sum);
          inverse[r] = 1.0f / total;
          if (lse && r < rows) lse[(t0 + r + shift) * s.heads + head] = m + __builtin_logf(total);
        }
        mix(p, tp, values, dp, last, inverse, o);
        for (int r = 0; r < rows; ++r) narrow(o + r * dp, dim, out + (t0 + r + shift) * q_size + head * dim);
      }
    }
  }
}

template <class T>
void attention_backward(const HeadShape& s, const i64* lengths, i64 segments, i64 kv_head, const T* qkv,
                        const float* cos, const float* sin, const T* out, const float* lse, const T* dout,
                        T* dqkv, float* scratch) {
  const i64 prefix = lengths[0];
  i64 longest = prefix;
  for (i64 b = 1; b < segments; ++b) longest = prefix + lengths[b] > longest ? prefix + lengths[b] : longest;
  const i64 dim = s.head_dim, dp = padded(dim), tp = padded(longest), half = dim / 2;
  const i64 q_size = s.heads * dim, kv_size = s.kv_heads * dim, row_size = q_size + 2 * kv_size;
  const i64 group = s.heads / s.kv_heads;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
  float* keys = scratch;                // (dim, tp), transposed: the prefix's, then the current branch's
  float* values = keys + dim * tp;      // (dim, tp), transposed
  float* key_rows = values + dim * tp;  // (longest, dp)
  float* dk = key_rows + longest * dp;  // (longest, dp): the prefix's collects every branch's share
  float* dv = dk + longest * dp;        // (longest, dp)
  float* q = dv + longest * dp;         // (kQueries, dp)
  float* grad = q + kQueries * dp;      // (kQueries, dp)
  float* dq = grad + kQueries * dp;     // (kQueries, dp)
  float* p = dq + kQueries * dp;        // (kQueries, tp)
  float* ds = p + kQueries * tp;        // (kQueries, tp)
  const float ones[kQueries] = {1, 1, 1, 1};

  const auto write_back = [&](i64 start, i64 stop, i64 shift) {
    for (i64 t = start; t < stop; ++t) {
      T* to = dqkv + (t + shift) * row_size + q_size + kv_head * dim;
      rotate_back(dk + t * dp, cos + t * half, sin + t * half, dim, 1.0f, to);
      narrow(dv + t * dp, dim, to + kv_size);
    }
  };

  i64 token = 0;  // first of the segment
  for (i64 segment = 0; segment < segments; token += lengths[segment++]) {
    const i64 start = segment == 0 ? 0 : prefix, stop = start + lengths[segment];  // positions
    const i64 shift = token - start;                                               // token of a position
    for (i64 t = start; t < stop; ++t) {
      const T* k = qkv + (t + shift) * row_size + q_size + kv_head * dim;
      float* row = key_rows + t * dp;
      rotate(k, cos + t * half, sin + t * half, dim, 1.0f, row);
      for (i64 d = 0; d < dim; ++d) {
        keys[d * tp + t] = row[d];
        values[d * tp + t] = one(k + kv_size + d);
      }
      for (i64 d = 0; d < dp; ++d) dk[t * dp + d] = dv[t * dp + d] = 0;
    }
    for (i64 head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      for (i64 t0 = start; t0 < stop; t0 += kQueries) {
        const int rows = stop - t0 < kQueries ? static_cast<int>(stop - t0) : kQueries;
        float delta[kQueries], row_lse[kQueries];
        for (int r = 0; r < kQueries; ++r) {
          const i64 t = r < rows ? t0 + r : t0;
          rotate(qkv + (t + shift) * row_size + head * dim, cos + t * half, sin + t * half, dim, scale,
                 q + r * dp);
          row_lse[r] = lse[(t + shift) * s.heads + head];
          Vec sum{};
          for (i64 d = 0; d < dim; d += kLanes) {
            // A row that is not there repeats row t0 with no gradient: it adds nothing.
            const i64 at = (t + shift) * q_size + head * dim + d;
            const Vec g = r < rows ? load_up_to(dout + at, dim - d) : Vec{};
            store(grad + r * dp + d, g);
            sum += g * load_up_to(out + at, dim - d);
          }
          delta[r] = sum_lanes(sum);
        }
        const i64 last = t0 + rows;
        for (i64 j = 0; j < last; j += kLanes) {
          Vec score[kQueries], dp_row[kQueries];
          products(q, dp, keys + j, tp, dim, score);
          products(grad, dp, values + j, tp, dim, dp_row);
          for (int r = 0; r < kQueries; ++r) {
            const Vec weight = first_lanes(exp_of(score[r] - row_lse[r]), t0 + r + 1 - j, 0);
            store(p + r * tp + j, weight);
            store(ds + r * tp + j, weight * (dp_row[r] - delta[r]));
          }
        }
        mix(ds, tp, key_rows, dp, last, ones, dq);
        for (i64 c = 0; c < dp; c += kLanes) {
          Vec qs[kQueries], gs[kQueries];
          for (int r = 0; r < kQueries; ++r) qs[r] = load(q + r * dp + c), gs[r] = load(grad + r * dp + c);
          for (i64 j = 0; j < last; ++j) {
            Vec k = load(dk + j * dp + c), v = load(dv + j * dp + c);
            for (int r = 0; r < kQueries; ++r) {
              k += qs[r] * ds[r * tp + j];
              v += gs[r] * p[r * tp + j];
            }
            store(dk + j * dp + c, k);
            store(dv + j * dp + c, v);
          }
        }
        for (int r = 0; r < rows; ++r) {
          const i64 t = t0 + r;
          rotate_back(dq + r * dp, cos + t * half, sin + t * half, dim, scale,
                      dqkv + (t + shift) * row_size + head * dim);
        }
      }
    }
    if (segment > 0) write_back(start, stop, shift);
  }
  write_back(0, prefix, 0);
}

/// R query heads, from head h0 on, of one key/value head, over `count` cached positions.
template <class T, int R>
void decode_heads(const HeadShape& s, i64 h0, i64 kv_head, i64 count, const T* qkv, const float* cos,
                  const float* sin, void* const* blocks, i64 offset, T* out, float* q, float* p) {
  const i64 dim = s.head_dim, dp = padded(dim), tp = padded(count);
  const i64 kv_size = s.kv_heads * dim;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
  for (int r = 0; r < R; ++r) rotate(qkv + (h0 + r) * dim, cos, sin, dim, scale, q + r * dp);
  Vec top[R];
  for (int r = 0; r < R; ++r) top[r] = splat(-__builtin_inff());
  for (i64 j = 0; j < count; j += kLanes) {
    const T* keys = static_cast<const T*>(blocks[j / kCacheBlock]) + offset + kv_head * dim * kCacheBlock;
    Vec acc[R] = {};
    for (i64 d = 0; d < dim; ++d) {
      const Vec column = load(keys + d * kCacheBlock);
      for (int r = 0; r < R; ++r) acc[r] += column * q[r * dp + d];
    }
    for (int r = 0; r < R; ++r) {
      const Vec seen = first_lanes(acc[r], count - j, -__builtin_inff());
      top[r] = max_of(seen, top[r]);
      store(p + r * tp + j, seen);
    }
  }
  float inverse[R];
  for (int r = 0; r < R; ++r) {
    const float m = max_lanes(top[r]);
    Vec sum{};
    for (i64 j = 0; j < count; j += kLanes) {
      const Vec score = load(p + r * tp + j);
      const Vec e = choose(score == -__builtin_inff(), Vec{}, exp_of(score - m));
      store(p + r * tp + j, e);
      sum += e;
    }
    inverse[r] = 1.0f / sum_lanes(sum);
  }
  for (i64 c = 0; c < dim; c += kLanes) {
    Vec acc[R] = {};
    for (i64 j0 = 0; j0 < count; j0 += kCacheBlock) {
      const T* values = static_cast<const T*>(blocks[j0 / kCacheBlock]) + offset + kv_size * kCacheBlock;
      const i64 stop = count - j0 < kCacheBlock ? count - j0 : kCacheBlock;
      for (i64 j = 0; j < stop; ++j) {
        const Vec v = load_up_to(values + j * kv_size + kv_head * dim + c, dim - c);
        for (int r = 0; r < R; ++r) acc[r] += v * p[r * tp + j0 + j];
      }
    }
    for (int r = 0; r < R; ++r) store_up_to(out + (h0 + r) * dim + c, acc[r] * inverse[r], dim - c);
  }
}

template <class T>
void decode_attention(const HeadShape& s, i64 position, const T* qkv, const float* cos, const float* sin,
                      void* const* blocks, i64 offset, T* out, float* scratch) {
  static_assert(kCacheBlock == kLanes, "a vector is a block's positions");
  const i64 dim = s.head_dim, dp = padded(dim), half = dim / 2, group = s.heads / s.kv_heads,
            count = position + 1;
  const i64 q_size = s.heads * dim, kv_size = s.kv_heads * dim;
  float* q = scratch;                    // (4, dp)
  float* p = q + 4 * dp;                 // (4, padded(count))
  float* k_row = p + 4 * padded(count);  // (dp)
  cos += position * half;
  sin += position * half;
  T* block = static_cast<T*>(blocks[position / kCacheBlock]) + offset;
  const i64 within = position % kCacheBlock;
  for (i64 kv_head = 0; kv_head < s.kv_heads; ++kv_head) {
    const T* k = qkv + q_size + kv_head * dim;
    rotate(k, cos, sin, dim, 1.0f, k_row);
    for (i64 d = 0; d < dim; ++d) {
      put(block + (kv_head * dim + d) * kCacheBlock + within, k_row[d]);
      block[kv_size * kCacheBlock + within * kv_size + kv_head * dim + d] = k[kv_size + d];
    }
    const i64 end = (kv_head + 1) * group;
    for (i64 h = kv_head * group; h < end;) {
      if (end - h >= 4) {
        decode_heads<T, 4>(s, h, kv_head, count, qkv, cos, sin, blocks, offset, out, q, p);
        h += 4;
      } else if (end - h >= 2) {
        decode_heads<T, 2>(s, h, kv_head, count, qkv, cos, sin, blocks, offset, out, q, p);
        h += 2;
      } else {
        decode_heads<T, 1>(s, h, kv_head, count, qkv, cos, sin, blocks, offset, out, q, p);
        ++h;
      }
    }
  }
}

template <class T>
float exp_row(const T* logits, i64 size, float scale, float* p, double* block_sums) {
  Vec top = splat(-__builtin_inff());
  i64 v = 0;
  for (; v + kLanes <= size; v += kLanes) {
    const Vec z = load(logits + v) * scale;
    store(p + v, z);
    top = max_of(z, top);
  }
  float m = max_lanes(top);
  for (; v < size; ++v) {
    p[v] = one(logits + v) * scale;
    m = p[v] > m ? p[v] : m;
  }
  for (i64 b = 0; b < size; b += kSumBlock) {
    const i64 stop = b + kSumBlock < size ? b + kSumBlock : size;
    Vec part{};
    for (v = b; v < stop; v += kLanes) {
      const i64 n = stop - v;
      const Vec z = load_up_to(p + v, n) - m;
      Vec e = choose(z < -87.0f, Vec{}, exp_of(z));  // -inf, and what float32 would call a denormal, is 0
      if (n < kLanes) e = first_lanes(e, n, 0);
      store_up_to(p + v, e, n);
      part += e;
    }
    block_sums[b / kSumBlock] = static_cast<double>(sum_lanes(part));
  }
  return m;
}

template <class T>
void scatter_add(const std::int32_t* ids, i64 rows, const T* x, i64 channels, float* out, i64 c0, i64 c1) {
  for (i64 i = 0; i < rows; ++i) {
    const T* from = x + i * channels;
    float* to = out + ids[i] * channels;
    for (i64 c = c0; c < c1; c += kLanes) {
      const i64 n = c1 - c;
      store_up_to(to + c, load_up_to(to + c, n) + load_up_to(from + c, n), n);
    }
  }
}

// A block of c is kept in registers: 6 x 64 with AVX-512's 32 registers of 16 floats, 4 x 16 with fewer or
// narrower ones.
#if defined(__AVX512F__)
constexpr int kBlockRows = 6, kBlockVecs = 4;
#else
constexpr int kBlockRows = 4, kBlockVecs = 1;
#endif
constexpr i64 kPanel = 64;

/// Rows i .. i + R, columns j .. j + 16 V (the last vector `tail` wide, where that is not 16) of c.
template <int R, int V>
INLINE void gemm_block(const Gemm& g, i64 i, i64 j, i64 tail) {
  const bool short_load = tail < kLanes && !g.b_padded;
  const float* b = g.b + j / kPanel * g.b_panel + j % kPanel;
  const float* a[R];
  Vec acc[R][V];
  for (int r = 0; r < R; ++r) {
    a[r] = g.a + (i + r) * g.a_row;
    const float* start = g.start ? g.start + (i + r) * g.start_row + j : nullptr;
    for (int v = 0; v < V; ++v) {
      acc[r][v] = !start ? Vec{} : load_up_to(start + v * kLanes, v + 1 < V ? kLanes : tail);
    }
  }
  if (short_load) {
    for (i64 k = 0; k < g.k; ++k) {
      for (int v = 0; v < V; ++v) {
        const Vec x = load_up_to(b + k * g.b_row + v * kLanes, v + 1 < V ? kLanes : tail);
        for (int r = 0; r < R; ++r) acc[r][v] += x * a[r][k * g.a_column];
      }
    }
  } else {
    for (i64 k = 0; k < g.k; ++k) {
      Vec x[V];
      for (int v = 0; v < V; ++v) x[v] = load(b + k * g.b_row + v * kLanes);
      for (int r = 0; r < R; ++r) {
        const float y = a[r][k * g.a_column];
        for (int v = 0; v < V; ++v) acc[r][v] += x[v] * y;
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    float* c = g.c + (i + r) * g.c_row + j;
    for (int v = 0; v < V; ++v) store_up_to(c + v * kLanes, acc[r][v], v + 1 < V ? kLanes : tail);
  }
}

template <int V>
void gemm_columns(const Gemm& g, i64 begin, i64 end, i64 j, i64 tail) {
  i64 i = begin;
  for (; i + kBlockRows <= end; i += kBlockRows) gemm_block<kBlockRows, V>(g, i, j, tail);
  for (; i + 2 <= end; i += 2) gemm_block<2, V>(g, i, j, tail);
  for (; i < end; ++i) gemm_block<1, V>(g, i, j, tail);
}

void gemm(const Gemm& g, i64 begin, i64 end) {
  for (i64 j = 0; j < g.n;) {
    const i64 left = g.n - j;
    const i64 vecs = (left < kBlockVecs * kLanes ? left + kLanes - 1 : kBlockVecs * kLanes) / kLanes;
    const i64 tail = left < vecs * kLanes ? left - (vecs - 1) * kLanes : kLanes;
    switch (vecs) {
#if defined(__AVX512F__)
      case 4:
        gemm_columns<4>(g, begin, end, j, tail);
        break;
      case 3:
        gemm_columns<3>(g, begin, end, j, tail);
        break;
      case 2:
        gemm_columns<2>(g, begin, end, j, tail);
        break;
#endif
      default:
        gemm_columns<1>(g, begin, end, j, tail);
    }
    j += vecs * kLanes;
  }
}

void gemm_pack(const float* w, i64 n, i64 k, float* packed) {
  for (i64 j0 = 0; j0 < n; j0 += kPanel) {
    float* panel = packed + j0 * k;
    for (i64 j = 0; j < kPanel; ++j) {
      const float* from = w + (j0 + j) * k;
      if (j0 + j < n) {
        for (i64 r = 0; r < k; ++r) panel[r * kPanel + j] = from[r];
      } else {
        for (i64 r = 0; r < k; ++r) panel[r * kPanel + j] = 0;
      }
    }
  }
}

// Blocks of sums in registers. With 16 of 8 floats 6 x 16 take twelve, two are for a row of b and one for a
// number of a; with 32 of 16 floats 12 x 16 hide the latency of two units.
#if defined(__AVX512F__)
constexpr int kProductRows = 12;
#else
constexpr int kProductRows = 6;
#endif
#if defined(__AVX2__)
constexpr bool kHasProduct = true;
#else
constexpr bool kHasProduct = false;
#endif
constexpr i64 kProductDepth = 256;  // a panel of b then takes half of a first-level cache

/// c (R, 16), rows c_row apart, = or += a b: a's element (r, k) is a[r * a_row + k] or, packed,
/// a[kProductRows k + r]; b (depth, 16).
template <int R, bool packed>
INLINE void product_block(const float* a, i64 a_row, const float* b, i64 depth, float* c, i64 c_row,
                          bool add) {
  Vec acc[R] = {};
  for (i64 k = 0; k < depth; ++k) {
    const Vec v = load(b + k * kLanes);
    for (int r = 0; r < R; ++r) acc[r] += v * (packed ? a[k * kProductRows + r] : a[r * a_row + k]);
  }
  // Sums of sums: a single chain of thousands of additions would lose twice as much to rounding.
  for (int r = 0; r < R; ++r) store(c + r * c_row, add ? load(c + r * c_row) + acc[r] : acc[r]);
}

/// product_block of 1 <= rows <= R rows.
template <bool packed, int R = kProductRows>
void product_rows(int rows, const float* a, i64 a_row, const float* b, i64 depth, float* c, i64 c_row,
                  bool add) {
  if constexpr (R > 1) {
    if (rows < R) return product_rows<packed, R - 1>(rows, a, a_row, b, depth, c, c_row, add);
  }
  product_block<R, packed>(a, a_row, b, depth, c, c_row, add);
}

/// Rows of a, k0 .. k0 + depth, as product_block wants them: where they lie, or widened or packed into
/// scratch.
template <class T>
INLINE void take_rows(const Factor& f, i64 i, int rows, i64 k0, i64 depth, bool may_read_16, float* scratch) {
  const T* from = static_cast<const T*>(f.data) + i * f.row + k0 * f.column;
  if (f.column == 1) {
    for (int r = 0; r < rows; ++r) {
      for (i64 k = 0; k < depth; k += kLanes) {
        store(scratch + r * kProductDepth + k, load_up_to(from + r * f.row + k, depth - k));
      }
    }
  } else if (may_read_16) {
    for (i64 k = 0; k < depth; ++k) store(scratch + k * kProductRows, load(from + k * f.column));
  } else {
    for (i64 k = 0; k < depth; ++k) {
      for (int r = 0; r < rows; ++r) scratch[k * kProductRows + r] = one(from + k * f.column + r);
    }
  }
}

void product(const Factor& f, i64 k, const float* panels, i64 i0, i64 i1, i64 p0, i64 p1, float* c) {
  const i64 c_row = (p1 - p0) * kLanes;
  float scratch[kProductRows * kProductDepth + kLanes];
  for (i64 k0 = 0; k0 < k; k0 += kProductDepth) {
    const i64 depth = k - k0 < kProductDepth ? k - k0 : kProductDepth;
    for (i64 i = i0; i < i1; i += kProductRows) {
      const int rows = i1 - i < kProductRows ? static_cast<int>(i1 - i) : kProductRows;
      const bool in_place = !f.is_bf16 && f.column == 1;
      if (f.is_bf16) {
        take_rows<BFloat16>(f, i, rows, k0, depth, i + kLanes <= i1, scratch);
      } else if (!in_place) {
        take_rows<float>(f, i, rows, k0, depth, i + kLanes <= i1, scratch);
      }
      const float* a = in_place ? static_cast<const float*>(f.data) + i * f.row + k0 : scratch;
      const i64 a_row = in_place ? f.row : kProductDepth;
      for (i64 p = p0; p < p1; ++p) {
        const float* b = panels + (p * k + k0) * kLanes;
        float* to = c + (i - i0) * c_row + (p - p0) * kLanes;
        if (f.column == 1) {
          product_rows<false>(rows, a, a_row, b, depth, to, c_row, k0 > 0);
        } else {
          product_rows<true>(rows, a, 0, b, depth, to, c_row, k0 > 0);
        }
      }
    }
  }
}

template <class T>
void pack_panels_of(const Factor& f, i64 k, i64 n, float* panels, i64 begin, i64 end) {
  const T* from = static_cast<const T*>(f.data);
  for (i64 p = begin; p < end; ++p) {
    const i64 j0 = p * kLanes, columns = n - j0 < kLanes ? n - j0 : kLanes;
    float* to = panels + j0 * k;
    if (f.column == 1) {
      for (i64 r = 0; r < k; ++r) store(to + r * kLanes, load_up_to(from + r * f.row + j0, columns));
      continue;
    }
    for (i64 j = 0; j < kLanes; ++j) {
      const T* column = from + (j0 + j) * f.column;
      for (i64 r = 0; r < k; ++r) to[r * kLanes + j] = j < columns ? one(column + r) : 0.0f;
    }
  }
}

void pack_panels(const Factor& f, i64 k, i64 n, float* panels, i64 begin, i64 end) {
  if (f.is_bf16) {
    pack_panels_of<BFloat16>(f, k, n, panels, begin, end);
  } else {
    pack_panels_of<float>(f, k, n, panels, begin, end);
  }
}

template <class T>
void store_transposed(const float* c, i64 c_row, i64 m, i64 n, const T* start, i64 start_row, T* y,
                      i64 y_row) {
  for (i64 j = 0; j < n; ++j) {
    for (i64 i = 0; i < m; ++i) {
      put(y + j * y_row + i, c[i * c_row + j] + (start ? one(start + j * start_row + i) : 0.0f));
    }
  }
}

void add_tile(const float* c, i64 c_row, i64 m, i64 n, float* y, i64 y_row) {
  for (i64 i = 0; i < m; ++i) {
    for (i64 j = 0; j < n; ++j) y[i * y_row + j] += c[i * c_row + j];
  }
}

void adamw(float* master, const float* grad, float* m, float* v, i64 n, const AdamWStep& s) {
  const float shrink = 1.0f - s.learning_rate * s.weight_decay;
  const float rate = s.learning_rate / s.bias1;
  const float root = 1.0f / __builtin_sqrtf(s.bias2);
  for (i64 i = 0; i < n; ++i) {
    const float g = grad[i] * s.grad_scale;
    m[i] = s.beta1 * m[i] + s.rest1 * g;
    v[i] = s.beta2 * v[i] + s.rest2 * g * g;
    master[i] = master[i] * shrink - rate * m[i] / (__builtin_sqrtf(v[i]) * root + s.eps);
  }
}

double sum_squares(const float* x, i64 n) {
  double sums[kLanes] = {};
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (i64 l = 0; l < kLanes; ++l) sums[l] += static_cast<double>(x[i + l]) * static_cast<double>(x[i + l]);
  }
  double total = 0;
  for (; i < n; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  for (const double s : sums) total += s;
  return total;
}

void to_bf16(const float* x, BFloat16* y, i64 n) {
  for (i64 i = 0; i < n; i += kLanes) store_up_to(y + i, load_up_to(x + i, n - i), n - i);
}

template <class T>
constexpr Ops<T> ops() {
  return {&rms_norm<T>,           &rms_norm_backward<T>, &swiglu<T>,  &swiglu_backward<T>,  &attention<T>,
          &attention_backward<T>, &decode_attention<T>,  &exp_row<T>, &store_transposed<T>, &scatter_add<T>};
}

}  // namespace

extern const Table kTable;
constexpr Table kTable = {RAPO_STRING(RAPO_ISA), ops<float>(), ops<BFloat16>(), &adamw,
                          &sum_squares,          &gemm,        &gemm_pack,      &to_bf16,
                          kHasProduct,           &pack_panels, &product,        &add_tile};

}  // namespace RAPO_ISA
}  // namespace rapo::loops
