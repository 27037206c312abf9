// The engine's operations on tensors: checked nothing, spread over threads, run on the CPU by ops/cpu/loops
// and elsewhere by ops_aten. On the CPU every function returns the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/parallel.h"
#include "model/packing.h"
#include "ops/aten.h"
#include "ops/cpu/loops.h"

namespace rapo::ops {

/// Calls f(begin, end) for ranges that cover [0, n), on the kernels' threads: libtorch's OpenMP pool is not
/// ours to use, since its wheels may bring a libgomp of their own. No range is shorter than `grain` (but the
/// last); all begin at multiples of `step`.
template <class F>
void for_ranges(std::int64_t n, std::int64_t grain, const F& f, std::int64_t step = 1) {
  const std::int64_t wanted = 2 * static_cast<std::int64_t>(kernel_threads());  // evens out unequal ranges
  std::int64_t length = std::max((n + wanted - 1) / wanted, std::max<std::int64_t>(grain, 1));
  length = (length + step - 1) / step * step;
  if (kernel_threads() == 1 || length >= n) {
    if (n > 0) f(std::int64_t{0}, n);
    return;
  }
  parallel_for((n + length - 1) / length,
               [&](std::int64_t i) { f(i * length, std::min(n, (i + 1) * length)); });
}

/// Whether the operations on x are ATen's (ops_aten.h) and not cpu/loops': those on other devices, and all
/// where RAPO_ENGINE_ISA is `aten`, by which the tests run the devices' code on the CPU.
bool on_aten(const at::Tensor& x);

/// cos and sin of the rotary embedding, (positions, D / 2) float32, rounded to the model's dtype as
/// transformers does.
struct Rope {
  at::Tensor cos, sin;
};
Rope make_rope(std::int64_t positions, std::int64_t head_dim, double theta, at::ScalarType dtype);

/// x (R, C), w (C) -> (R, C); rstd (R) float32 is filled where given.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor* rstd = nullptr);
/// dx (R, C) and dw (C, float32) are added to.
void rms_norm_backward(const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd, const at::Tensor& dy,
                       at::Tensor& dx, at::Tensor& dw);

/// (R, 2I), gate then up -> (R, I).
at::Tensor swiglu(const at::Tensor& gate_up);
at::Tensor swiglu_backward(const at::Tensor& gate_up, const at::Tensor& dout);

/// Causal attention within each family of the input, rotation included. qkv (total, (H + 2K) D) -> (total, H
/// D); lse (total, H) float32 and kv (total, 2 K D: rotated k, then v) are filled where given.
at::Tensor attention(const loops::HeadShape& shape, const TrunkInput& input, const Rope& rope,
                     const at::Tensor& qkv, at::Tensor* lse, at::Tensor* kv);
/// -> dqkv (total, (H + 2K) D).
at::Tensor attention_backward(const loops::HeadShape& shape, const TrunkInput& input, const Rope& rope,
                              const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse,
                              const at::Tensor& dout);
/// The rotated keys and values of one sequence, (length, 2 K D), in the blocks of
/// loops::Ops::decode_attention.
at::Tensor cache_blocks(const loops::HeadShape& shape, const at::Tensor& kv);
/// Row i of qkv is the next token, at positions[i], of the sequence whose cache blocks are blocks[i] (see
/// loops::Ops::decode_attention).
at::Tensor decode_attention(const loops::HeadShape& shape,
                            const std::vector<const std::vector<void*>*>& blocks,
                            const std::vector<std::int64_t>& positions, const Rope& rope,
                            const at::Tensor& qkv, std::int64_t layer_offset);

/// Rows of a (V, C) table.
at::Tensor gather_rows(const at::Tensor& table, const std::int32_t* ids, std::int64_t count);
at::Tensor gather_rows(const at::Tensor& table, const std::int64_t* ids, std::int64_t count);
/// rows (N, C) at the given positions of an array (total, C) that is 0 elsewhere; rows at one position add
/// up.
at::Tensor spread_rows(const at::Tensor& rows, const std::vector<std::int64_t>& positions,
                       std::int64_t total);
/// table (V, C) float32: row ids[i] += x[i], in the order of i.
void scatter_add_rows(at::Tensor& table, const std::int32_t* ids, const at::Tensor& x);

/// A weight (N, K) made ready for x w^T; worth keeping where many small x follow, as in decoding.
struct Linear {
  at::Tensor weight;
  at::Tensor packed;  // undefined where libtorch multiplies
};
Linear prepare(const at::Tensor& weight);
/// x (R, K) w (N, K)^T -> (R, N), plus a bias (N) or a residual (R, N) where given.
at::Tensor linear(const at::Tensor& x, const Linear& w, const at::Tensor& bias_or_residual = {});
inline at::Tensor linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias_or_residual = {}) {
  return linear(x, prepare(w), bias_or_residual);
}
/// dy (R, N) w (N, K) -> (R, K).
at::Tensor linear_backward(const at::Tensor& dy, const at::Tensor& w);
/// grad (N, K) float32 += dy (R, N)^T x (R, K). For bfloat16 the product is rounded once to bfloat16 (its
/// sums are float32) and added in float32.
void add_weight_grad(at::Tensor& grad, const at::Tensor& dy, const at::Tensor& x);
/// grad (N) float32 += the column sums of dy (R, N), summed in float32.
void add_bias_grad(at::Tensor& grad, const at::Tensor& dy);

}  // namespace rapo::ops
