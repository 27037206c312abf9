// The engine's own CPU loops, as a table of plain functions, one table per instruction set.
// No library header may be included where an instruction set is enabled: an inline function of a header,
// compiled for AVX-512, could replace the portable one at link time and crash on an older machine.
// Symbols: R rows (tokens), C channels, I intermediate size, H query heads, K key/value heads, D head width,
// V vocabulary.
#pragma once

#include <cstdint>

#include "../dtypes.h"

namespace rapo::loops {

using rapo::BFloat16;

/// A matrix stored by rows or by columns: element (i, k) is data[i * row + k * column], and one of the two
/// strides is 1.
template <class T>
struct Factor {
  const T* data;
  std::int64_t row, column;
};

constexpr std::int64_t kCacheBlock = 16;
constexpr std::int64_t kSumBlock = 1024;
constexpr std::int64_t kRoundingBlock = 128;

struct HeadShape {
  std::int64_t heads, kv_heads, head_dim;
};

/// Many functions take a range [begin, end) of rows or units, so that the caller can share the work out among
/// threads. The split does not change the bits of the results.
template <class T>
struct Ops {
  /// y = x * rstd * w with rstd = 1 / sqrt(mean(x^2) + eps); x, y (R, C), w (C). rstd (R) is written unless
  /// null.
  void (*rms_norm)(const T* x, const T* w, float eps, std::int64_t channels, T* y, float* rstd,
                   std::int64_t begin, std::int64_t end);
  /// Adds d loss/dx to dx (R, C) and d loss/dw to dw (C), for the rows in the range.
  void (*rms_norm_backward)(const T* x, const T* w, const float* rstd, const T* dy, std::int64_t channels,
                            T* dx, float* dw, std::int64_t begin, std::int64_t end);
  /// out = silu(gate) * up. gate_up (R, 2I) holds gate, then up; out (R, I).
  void (*swiglu)(const T* gate_up, std::int64_t width, T* out, std::int64_t begin, std::int64_t end);
  void (*swiglu_backward)(const T* gate_up, const T* dout, std::int64_t width, T* dgate_up,
                          std::int64_t begin, std::int64_t end);
  /// Causal attention, rotary embedding included, of one family (see trunk_input.h), one key/value head and
  /// the query heads that share it. The family's tokens lie end to end: lengths[0] of the prefix, then those
  /// of each branch. qkv (tokens, (H + 2K) D) holds q, k, v before rotation; cos, sin (positions, D / 2); out
  /// (tokens, H D). lse (tokens, H) is written unless null. kv (tokens, 2 K D) receives the rotated k, then
  /// v, unless null. scratch: attention_scratch() floats.
  void (*attention)(const HeadShape& shape, const std::int64_t* lengths, std::int64_t segments,
                    std::int64_t kv_head, const T* qkv, const float* cos, const float* sin, T* out,
                    float* lse, T* kv, float* scratch);
  /// dqkv (tokens, (H + 2K) D): writes the columns of this key/value head and its query heads.
  void (*attention_backward)(const HeadShape& shape, const std::int64_t* lengths, std::int64_t segments,
                             std::int64_t kv_head, const T* qkv, const float* cos, const float* sin,
                             const T* out, const float* lse, const T* dout, T* dqkv, float* scratch);
  /// Attention for one new token of one sequence. Rotates q and k for `position`, puts k and v into the
  /// sequence's cache, and attends to positions 0 .. position. qkv ((H + 2K) D), out (H D). The cache
  /// consists of blocks of kCacheBlock positions. Block b of this layer begins at blocks[b] + offset
  /// elements. It holds the keys (K, D, kCacheBlock), so that the products with a query run along the
  /// positions, and then the values (kCacheBlock, K, D).
  void (*decode_attention)(const HeadShape& shape, std::int64_t position, const T* qkv, const float* cos,
                           const float* sin, void* const* blocks, std::int64_t offset, T* out,
                           float* scratch);
  /// p[v] = exp(logits[v] * scale - max). Returns max, the largest logits[v] * scale. block_sums[b] is the
  /// sum of p over the kSumBlock words of block b.
  float (*exp_row)(const T* logits, std::int64_t size, float scale, float* p, double* block_sums);
  /// y = x, rounded to T.
  void (*round)(const float* x, T* y, std::int64_t n);
  /// y = x.
  void (*widen)(const T* x, float* y, std::int64_t n);
  // The next three compute c (m, n) = a (m, k) b (k, n) with float32 sums, for large matrices. b, the smaller
  // factor, is packed once; a is read where it lies.
  /// Packs b (k, n) into panels of 16 columns, each (k, 16) float32, for panels [begin, end). Missing columns
  /// are 0.
  void (*pack_panels)(const Factor<T>& b, std::int64_t k, std::int64_t n, float* panels, std::int64_t begin,
                      std::int64_t end);
  /// c (i1 - i0, 16 (p1 - p0)) = rows [i0, i1) of a times panels [p0, p1).
  void (*product)(const Factor<T>& a, std::int64_t k, const float* panels, std::int64_t i0, std::int64_t i1,
                  std::int64_t p0, std::int64_t p1, float* c);
  /// y (n, m) = start + c^T for c (m, n). c_row, y_row and start_row are the elements from row to row. start
  /// may be null (0); start_row 0 uses the same row for all.
  void (*store_transposed)(const float* c, std::int64_t c_row, std::int64_t m, std::int64_t n, const T* start,
                           std::int64_t start_row, T* y, std::int64_t y_row);
  /// out[ids[i]] += x[i] for rows i in order, columns [c0, c1) only; x (rows, C).
  void (*scatter_add)(const std::int32_t* ids, std::int64_t rows, const T* x, std::int64_t channels,
                      float* out, std::int64_t c0, std::int64_t c1);
};

/// c (m, n) = start + a (m, k) b (k, n) in float32, for matrices that fit into the caches.
struct Gemm {
  std::int64_t m, n, k;
  const float* a;
  std::int64_t a_row, a_column;  // elements from row to row, and from column to column
  const float* b;                // element (r, j) is b[j / 64 * b_panel + r * b_row + j % 64]
  std::int64_t b_row, b_panel;   // a plain matrix: its row length and 64; packed by gemm_pack(): 64 and 64 k
  bool b_padded;                 // rows may be read up to a multiple of 16 columns
  float* c;
  std::int64_t c_row;
  const float* start;      // null: 0; c itself: the product is added to c
  std::int64_t start_row;  // elements from row to row; 0: the same row for all (a bias)
};

struct AdamWStep {
  float beta1, beta2, eps, learning_rate, weight_decay;
  float rest1, rest2;  // 1 - beta
  float bias1, bias2;  // 1 - beta^t
  float grad_scale;    // factor that clips the gradient's norm
};

struct Table {
  const char* name;
#define RAPO_MEMBER(dtype, type, member, ...) Ops<type> member;
  RAPO_MODEL_DTYPES(RAPO_MEMBER)
#undef RAPO_MEMBER
  void (*adamw)(float* master, const float* grad, float* m, float* v, std::int64_t n, const AdamWStep& step);
  double (*sum_squares)(const float* x, std::int64_t n);
  /// Computes rows [begin, end) of c. The bits of a row do not depend on m or on the range.
  void (*gemm)(const Gemm& g, std::int64_t begin, std::int64_t end);
  /// Packs w^T, w (n, k), as the b of gemm: gemm_pack_size(n, k) floats. Missing columns of the last panel
  /// are 0.
  void (*gemm_pack)(const float* w, std::int64_t n, std::int64_t k, float* packed);
  /// Rounds elements [first, first + n) of a tensor stochastically: see ops::Backend::round_randomly. Element
  /// i takes half j % 2 (0: the lower one) of word j / 2 of philox(key, stream, i / 128 * 16 + i % 16) (see
  /// philox.h), with j = i % 128 / 16. Infinities and NaNs stay what they are.
  void (*round_randomly)(const float* x, BFloat16* y, std::int64_t n, std::uint64_t key, std::uint64_t stream,
                         std::int64_t first);

  bool has_product;  // whether Ops::product is fast with this instruction set; see has_product()
  /// y (m, n) += c.
  void (*add_tile)(const float* c, std::int64_t c_row, std::int64_t m, std::int64_t n, float* y,
                   std::int64_t y_row);

#define RAPO_OPS(dtype, type, member, ...) \
  const Ops<type>& ops_of(type) const { return member; }
  RAPO_MODEL_DTYPES(RAPO_OPS)
#undef RAPO_OPS
  template <class T>
  const Ops<T>& ops() const {
    return ops_of(T{});
  }
  /// Calls f with the Ops of each dtype.
  template <class F>
  void each(const F& f) {
#define RAPO_CALL(dtype, type, member, ...) f(member);
    RAPO_MODEL_DTYPES(RAPO_CALL)
#undef RAPO_CALL
  }
};

/// Floats of scratch memory for attention and attention_backward (which needs more), and for
/// decode_attention. length: positions of the longest sequence.
inline std::int64_t attention_scratch(const HeadShape& s, std::int64_t length) {
  const std::int64_t t = (length + 19) / 16 * 16, d = (s.head_dim + 15) / 16 * 16;
  return 5 * t * d + 8 * t + 16 * d;
}
inline std::int64_t decode_scratch(const HeadShape& s, std::int64_t length) {
  const std::int64_t d = (s.head_dim + 15) / 16 * 16;
  return 4 * (d + length + 16) + d;
}

inline std::int64_t gemm_pack_size(std::int64_t n, std::int64_t k) { return (n + 63) / 64 * 64 * k; }

/// The table of the best instruction set that the machine has. RAPO_ENGINE_ISA (baseline, avx2, avx512) names
/// another.
const Table& table();

/// Whether Ops<T>::product is faster than libtorch's products. For float32 it is from AVX2 on: MKL is slower
/// on some processors (AMD), most of all for few rows. For bfloat16, oneDNN is faster if the processor
/// multiplies bfloat16 itself, and ten times slower if not.
template <class T>
bool has_product() {
  return table().has_product;
}
template <>
bool has_product<BFloat16>();

}  // namespace rapo::loops
