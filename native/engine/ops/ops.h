// Tensor operations. Callers have checked the shapes. Each backend fills one table of operations: the CPU's
// own loops (cpu/), and ATen's kernels for any device that libtorch supports (aten/). A policy chooses its
// table when it is loaded.
// Symbols: R rows (tokens), C channels, I intermediate size, H query heads, K key/value heads, D head width,
// V vocabulary; N and K are also the sizes of a weight matrix.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "control.h"
#include "error.h"
#include "kernels/dtypes.h"
#include "kernels/parallel.h"
#include "ops/aten.h"
#include "ops/cpu/loops.h"
#include "ops/trunk_input.h"
#include "types.h"

namespace rapo::ops {

/// Calls f(begin, end) on the kernels' threads, for ranges that cover [0, n). libtorch's OpenMP pool is not
/// used, since libtorch's wheels may bring a libgomp of their own. No range but the last is shorter than
/// `grain`, and all ranges begin at multiples of `step`.
template <class F>
void for_ranges(std::int64_t n, std::int64_t grain, const F& f, std::int64_t step = 1) {
  const std::int64_t wanted =
      2 * static_cast<std::int64_t>(kernel_threads());  // twice the threads, which evens out unequal ranges
  std::int64_t length = std::max((n + wanted - 1) / wanted, std::max<std::int64_t>(grain, 1));
  length = (length + step - 1) / step * step;
  if (kernel_threads() == 1 || length >= n) {
    if (n > 0) f(std::int64_t{0}, n);
    return;
  }
  parallel_for((n + length - 1) / length,
               [&](std::int64_t i) { f(i * length, std::min(n, (i + 1) * length)); });
}

/// Throws kUnsupported unless a model's weights can have this dtype.
void check_model_dtype(DType dtype);
at::ScalarType scalar_type(DType dtype);
DType dtype_of(const at::Tensor& x);
/// The dtype's name in safetensors files.
const char* stored_name(DType dtype);

/// Calls f(T{}) with the element type T of a tensor whose dtype a model can have (dtypes.h).
template <class F>
decltype(auto) by_dtype(const at::Tensor& x, F&& f) {
  switch (dtype_of(x)) {
#define RAPO_CASE(dtype, type, ...) \
  case DType::dtype:                \
    return f(type{});
    RAPO_MODEL_DTYPES(RAPO_CASE)
#undef RAPO_CASE
    default:
      throw Error(ErrorCode::kUnsupported, "no operation exists for this dtype");
  }
}

template <class T>
T* data(const at::Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

using loops::HeadShape;

/// cos and sin of the rotary embedding, (positions, D / 2) float32, rounded to the model's dtype as in
/// transformers.
struct Rope {
  at::Tensor cos, sin;
};
Rope make_rope(std::int64_t positions, std::int64_t head_dim, double theta, at::ScalarType dtype);

/// A weight (N, K) prepared for x w^T. Preparing pays off if many small x follow, as in decoding.
struct Linear {
  at::Tensor weight;
  at::Tensor packed;  // defined if the CPU's own gemm computes the product
};

/// The random numbers of a stochastic rounding: element i of a tensor takes those of (key, stream, i).
struct RoundingNumbers {
  std::uint64_t key, stream;
};

/// The optimizer's flat buffers, and the ranges of them that a step changes. master and grad are float32; the
/// moments, mean and square, are float32 or bfloat16.
struct AdamWBuffers {
  at::Tensor master, grad, mean, square;
};
struct FlatRange {
  std::int64_t offset, size;
  bool decays;  // whether weight decay applies
};
struct AdamWStep {
  AdamW params;
  double learning_rate, grad_scale;
  std::int64_t number;  // number of the step from 1, for the bias correction
  /// For bfloat16 moments: range r rounds mean with the stream 2 r and square with the stream 2 r + 1, from
  /// its first element on.
  std::uint64_t rounding_key;
};

struct Backend {
  const char* name;
  /// true: decoding keeps keys and values in pages (generate/paged_cache.cpp). false: in one block of memory
  /// with a place for each sequence (generate/block_cache.cpp).
  bool has_pages;

  /// x (R, C), w (C) -> (R, C). rstd (R) float32 is written unless null.
  at::Tensor (*rms_norm)(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor* rstd);
  /// Adds to dx (R, C), and to dw (C, float32) if that is defined.
  void (*rms_norm_backward)(const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd,
                            const at::Tensor& dy, at::Tensor& dx, at::Tensor& dw);

  /// RMS norms of the heads: qkv (R, (H + 2K) D) with every query head normalised and multiplied by q_norm
  /// (D), every key head by k_norm (D), and the values as they are. rstd (R, H + K) float32 is written unless
  /// null.
  at::Tensor (*head_norm)(const HeadShape& shape, const at::Tensor& qkv, const at::Tensor& q_norm,
                          const at::Tensor& k_norm, double eps, at::Tensor* rstd);
  /// -> dqkv. Adds to dq_norm and dk_norm (D, float32) if they are defined.
  at::Tensor (*head_norm_backward)(const HeadShape& shape, const at::Tensor& qkv, const at::Tensor& q_norm,
                                   const at::Tensor& k_norm, const at::Tensor& rstd, const at::Tensor& dy,
                                   at::Tensor& dq_norm, at::Tensor& dk_norm);

  /// silu(gate) * up: (R, 2I), which holds gate, then up -> (R, I).
  at::Tensor (*swiglu)(const at::Tensor& gate_up);
  at::Tensor (*swiglu_backward)(const at::Tensor& gate_up, const at::Tensor& dout);

  /// Causal attention within each family of the input, rotation included: qkv (R, (H + 2K) D) -> (R, H D).
  /// Written unless null: lse, for attention_backward() of the same backend, and kv (R, 2 K D), the rotated
  /// k, then v.
  at::Tensor (*attention)(const HeadShape& shape, const TrunkInput& input, const Rope& rope,
                          const at::Tensor& qkv, at::Tensor* lse, at::Tensor* kv);
  /// -> dqkv (R, (H + 2K) D).
  at::Tensor (*attention_backward)(const HeadShape& shape, const TrunkInput& input, const Rope& rope,
                                   const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse,
                                   const at::Tensor& dout);

  /// Rows of the embedding (V, C).
  at::Tensor (*embed)(const at::Tensor& table, const std::int32_t* token_ids, std::int64_t count);
  /// table (V, C) float32: row token_ids[i] += x[i], in the order of i.
  void (*embed_backward)(at::Tensor& table, const std::int32_t* token_ids, const at::Tensor& x);
  /// Rows of x (R, C).
  at::Tensor (*gather_rows)(const at::Tensor& x, const std::int64_t* rows, std::int64_t count);
  /// Puts rows (N, C) at the given positions of an array (total, C) that is 0 elsewhere. Rows with the same
  /// position are added up.
  at::Tensor (*spread_rows)(const at::Tensor& rows, const std::vector<std::int64_t>& positions,
                            std::int64_t total);

  Linear (*prepare)(const at::Tensor& weight);
  /// x (R, K) w (N, K)^T -> (R, N), plus a bias (N) or a residual (R, N) if defined.
  at::Tensor (*linear)(const at::Tensor& x, const Linear& w, const at::Tensor& bias_or_residual);
  /// y (R, N) += x (R, K) w (N, K)^T. x and y may be some columns of a wider matrix.
  void (*add_linear)(at::Tensor& y, const at::Tensor& x, const Linear& w);
  /// dy (R, N) w (N, K) -> (R, K). dy may be some columns of a wider matrix.
  at::Tensor (*linear_backward)(const at::Tensor& dy, const at::Tensor& w);
  /// dx (R, K) += dy (R, N) w (N, K).
  void (*add_linear_backward)(at::Tensor& dx, const at::Tensor& dy, const at::Tensor& w);
  /// grad (N, K) float32 += dy (R, N)^T x (R, K). For bfloat16 the product has float32 sums, is rounded once
  /// to bfloat16 and then added in float32. dy and x may be some columns of wider matrices.
  void (*add_weight_grad)(at::Tensor& grad, const at::Tensor& dy, const at::Tensor& x);

  /// The Euclidean norm of a flat float32 tensor, summed in double in a fixed order.
  double (*norm_of)(const at::Tensor& flat);
  /// AdamW on the ranges. The weights take the new moments before these are rounded. May scale the gradient
  /// in place. Throws kAborted between ranges.
  void (*adamw)(AdamWBuffers& buffers, const std::vector<FlatRange>& ranges, const AdamWStep& step,
                const Control& control);
  /// weights (bfloat16) = master (float32), rounded.
  void (*round_weights)(const at::Tensor& master, at::Tensor& weights);
  /// to (bfloat16) = from (float32), both of them whole tensors' elements from `first` on, a multiple of
  /// loops::kRoundingBlock. A number between two bfloat16 numbers becomes the one further from 0 with a
  /// probability that is its distance from the other, in 65536ths of the gap, so that the mean is exact; a
  /// bfloat16 number stays as it is. Every backend gives the same bits.
  void (*round_randomly)(const at::Tensor& from, at::Tensor& to, const RoundingNumbers& numbers,
                         std::int64_t first);
};

/// Every function returns the same bits for any number of threads, except for products that libtorch
/// computes.
const Backend& cpu_backend();
/// No function except norm_of waits for the device. Host memory that they read is copied to the device first.
const Backend& aten_backend();
/// The table of that name; for an empty name, the device's own. Throws kInvalidArgument for an unknown name,
/// and for "cpu" on another device.
const Backend& backend_of(const std::string& name, at::Device device);

/// grad (N) float32 += the column sums of dy (R, N), summed in float32.
void add_bias_grad(at::Tensor& grad, const at::Tensor& dy);

}  // namespace rapo::ops
