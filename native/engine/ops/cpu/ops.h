// The CPU's operations on tensors: the loops of the machine's instruction set (loops.h), spread over the
// kernels' threads, and libtorch's products where those are faster.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/ops.h"

namespace rapo::ops::cpu {

/// At least so many floats of memory that belong to the thread. Valid until the thread's next call.
inline float* scratch(std::int64_t floats) {
  static thread_local std::vector<float> buffer;
  if (static_cast<std::int64_t>(buffer.size()) < floats) buffer.resize(static_cast<std::size_t>(floats));
  return buffer.data();
}

/// The rotated keys and values of one sequence, (length, 2 K D), rearranged into blocks as
/// loops::Ops::decode_attention expects.
at::Tensor cache_blocks(const HeadShape& shape, const at::Tensor& kv);
/// One decoding step. Row i of qkv is the token at positions[i] of the sequence whose cache blocks are
/// blocks[i] (see loops::Ops::decode_attention).
at::Tensor decode_attention(const HeadShape& shape, const std::vector<const std::vector<void*>*>& blocks,
                            const std::vector<std::int64_t>& positions, const Rope& rope,
                            const at::Tensor& qkv, std::int64_t layer_offset);

// linear.cpp
Linear prepare(const at::Tensor& weight);
at::Tensor linear(const at::Tensor& x, const Linear& w, const at::Tensor& bias_or_residual);
void add_linear(at::Tensor& y, const at::Tensor& x, const Linear& w);
at::Tensor linear_backward(const at::Tensor& dy, const at::Tensor& w);
void add_linear_backward(at::Tensor& dx, const at::Tensor& dy, const at::Tensor& w);
void add_weight_grad(at::Tensor& grad, const at::Tensor& dy, const at::Tensor& x);

// flat.cpp
double norm_of(const at::Tensor& flat);
void adamw(AdamWBuffers& buffers, const std::vector<FlatRange>& ranges, const AdamWStep& step,
           const Control& control);
void round_weights(const at::Tensor& master, at::Tensor& weights);
void round_randomly(const at::Tensor& from, at::Tensor& to, const RoundingNumbers& numbers,
                    std::int64_t first);

}  // namespace rapo::ops::cpu
