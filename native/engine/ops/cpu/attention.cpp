#include "vec.h"

namespace rapo::loops {
namespace RAPO_ISA {
namespace {

/// The half-split rotation (x1, x2) -> (x1 c - x2 s, x2 c + x1 s), multiplied by scale. The padding gets
/// zeros.
template <class T>
RAPO_INLINE void rotate(const T* x, const float* cos, const float* sin, i64 head_dim, float scale,
                        float* out) {
  const i64 half = head_dim / 2;
  for (i64 i = 0; i < half; ++i) {
    const float x1 = one(x + i), x2 = one(x + i + half);
    out[i] = (x1 * cos[i] - x2 * sin[i]) * scale;
    out[i + half] = (x2 * cos[i] + x1 * sin[i]) * scale;
  }
  for (i64 i = head_dim; i < padded(head_dim); ++i) out[i] = 0;
}

/// The transposed rotation.
template <class T>
RAPO_INLINE void rotate_back(const float* dy, const float* cos, const float* sin, i64 head_dim, float scale,
                             T* out) {
  const i64 half = head_dim / 2;
  for (i64 i = 0; i < half; ++i) {
    const float d1 = dy[i], d2 = dy[i + half];
    put(out + i, (d1 * cos[i] + d2 * sin[i]) * scale);
    put(out + i + half, (d2 * cos[i] - d1 * sin[i]) * scale);
  }
}

template <class T>
RAPO_INLINE void widen(const T* x, i64 n, float* out) {
  for (i64 i = 0; i < n; ++i) out[i] = one(x + i);
  for (i64 i = n; i < padded(n); ++i) out[i] = 0;
}

template <class T>
RAPO_INLINE void narrow(const float* x, i64 n, T* out) {
  for (i64 i = 0; i < n; ++i) put(out + i, x[i]);
}

// kQueries queries are computed at once, so that each loaded key or value serves all of them.
constexpr int kQueries = 4;

/// acc[r] = sum over d of rows[r][d] * columns[d][j .. j + 16); rows (kQueries, dp), columns (head_dim, tp).
RAPO_INLINE void products(const float* rows, i64 dp, const float* columns, i64 tp, i64 head_dim,
                          Vec acc[kQueries]) {
  for (int r = 0; r < kQueries; ++r) acc[r] = Vec{};
  for (i64 d = 0; d < head_dim; ++d) {
    const Vec k = load(columns + d * tp);
    for (int r = 0; r < kQueries; ++r) acc[r] += k * rows[r * dp + d];
  }
}

/// out[r][:] = scale * sum over j < count of weights[r][j] * values[j][:]; out (kQueries, dp), values (count,
/// dp).
RAPO_INLINE void mix(const float* weights, i64 tp, const float* values, i64 dp, i64 count,
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
  float* keys = scratch;             // (dim, tp), transposed: keys of the prefix, then of the current branch
  float* values = keys + dim * tp;   // (longest, dp)
  float* q = values + longest * dp;  // (kQueries, dp)
  float* o = q + kQueries * dp;      // (kQueries, dp)
  float* p = o + kQueries * dp;      // (kQueries, tp)
  float* k_row = p + kQueries * tp;  // (dp)

  i64 token = 0;  // the segment's first token
  for (i64 segment = 0; segment < segments; token += lengths[segment++]) {
    const i64 start = segment == 0 ? 0 : prefix, stop = start + lengths[segment];  // positions
    const i64 shift = token - start;  // a position plus shift is its token
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
        const i64 last = t0 + rows;  // some row sees keys 0 .. last - 1; later keys are masked
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
  float* keys = scratch;            // (dim, tp), transposed: keys of the prefix, then of the current branch
  float* values = keys + dim * tp;  // (dim, tp), transposed
  float* key_rows = values + dim * tp;  // (longest, dp)
  float* dk = key_rows + longest * dp;  // (longest, dp); the prefix's rows collect all branches
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

  i64 token = 0;  // the segment's first token
  for (i64 segment = 0; segment < segments; token += lengths[segment++]) {
    const i64 start = segment == 0 ? 0 : prefix, stop = start + lengths[segment];  // positions
    const i64 shift = token - start;  // a position plus shift is its token
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
            // Missing rows repeat row t0 with gradient 0, so that they add nothing.
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

/// Attention of query heads h0 .. h0 + R - 1, which share a key/value head, over `count` cached positions.
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
void fill(Ops<T>& ops) {
  ops.attention = &attention<T>;
  ops.attention_backward = &attention_backward<T>;
  ops.decode_attention = &decode_attention<T>;
}

}  // namespace

void fill_attention(Table& table) {
  table.each([](auto& ops) { fill(ops); });
}

}  // namespace RAPO_ISA
}  // namespace rapo::loops
