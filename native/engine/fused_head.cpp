#include "fused_head.h"

#include <algorithm>

#include "../kernels/loss.h"
#include "ops.h"

namespace rapo {
namespace {

constexpr std::int64_t kChunkBytes = 64 << 20;

DType dtype_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? DType::kFloat32 : DType::kBFloat16;
}

/// The same batch from row `at` on.
Batch rows_from(const Batch& batch, std::int64_t at, std::int64_t rows) {
  Batch part = batch;
  part.rows = rows;
  part.token_ids += at;
  if (part.token_weights) part.token_weights += at;
  if (part.advantages) part.advantages += at;
  if (part.ref_weights) part.ref_weights += at;
  if (part.old_logprobs) part.old_logprobs += at;
  if (part.policy_weights) part.policy_weights += at;
  if (part.sequence_log_ratios) part.sequence_log_ratios += at;
  return part;
}

}  // namespace

std::int64_t default_head_rows(std::int64_t vocab_size, std::int64_t element_size) {
  return std::max<std::int64_t>(1, kChunkBytes / (vocab_size * element_size));
}

Metrics fused_head_loss(const HeadRows& rows, const ops::Linear& weight, const ops::Linear& ref_weight,
                        const Objective& objective, std::int64_t chunk_rows, at::Tensor& dhidden,
                        at::Tensor& dweight) {
  Metrics total;
  for (std::int64_t at = 0; at < rows.batch.rows; at += chunk_rows) {
    const std::int64_t n = std::min(chunk_rows, rows.batch.rows - at);
    const auto hidden = rows.hidden.narrow(0, at, n);
    auto logits = ops::linear(hidden, weight);
    at::Tensor ref_logits;
    if (rows.ref_hidden.defined()) ref_logits = ops::linear(rows.ref_hidden.narrow(0, at, n), ref_weight);

    Batch part = rows_from(rows.batch, at, n);
    part.dtype = dtype_of(logits);
    part.logits = logits.data_ptr();
    part.logits_stride = logits.stride(0);
    if (ref_logits.defined()) {
      part.ref_logits = ref_logits.data_ptr();
      part.ref_stride = ref_logits.stride(0);
    }
    Outputs outputs;
    outputs.grad_logits = logits.data_ptr();  // in place: logits hold the gradient from here on
    outputs.grad_dtype = part.dtype;
    outputs.grad_stride = part.logits_stride;
    total.add(policy_loss(part, objective, outputs));

    dhidden.narrow(0, at, n).copy_(ops::linear_backward(logits, weight.weight));
    ops::add_weight_grad(dweight, logits, hidden);
  }
  return total;
}

void fused_head_logprobs(const at::Tensor& hidden, const ops::Linear& weight, const std::int32_t* token_ids,
                         double temperature, std::int64_t chunk_rows, const Control& control, float* logprobs,
                         float* entropy) {
  const std::int64_t total = hidden.size(0);
  for (std::int64_t at = 0; at < total; at += chunk_rows) {
    control.check();
    const std::int64_t n = std::min(chunk_rows, total - at);
    const auto logits = ops::linear(hidden.narrow(0, at, n), weight);
    LogitRows rows;
    rows.rows = n;
    rows.vocab_size = weight.weight.size(0);
    rows.dtype = dtype_of(logits);
    rows.data = logits.data_ptr();
    rows.stride = logits.stride(0);
    GatherOutputs outputs;
    outputs.logprobs = logprobs + at;
    outputs.entropy = entropy + at;
    gather_logprobs(rows, token_ids + at, temperature, outputs);
  }
}

}  // namespace rapo
