// The head fused with the objective. hidden (N, C) x W (V, C)^T is computed in chunks of rows, so that no (N,
// V) array exists for the policy or for the reference.
#pragma once

#include <cstdint>
#include <vector>

#include "control.h"
#include "kernels/objective.h"
#include "ops/aten.h"
#include "ops/ops.h"

namespace rapo {

/// The head's inputs. fused_head_loss() fills in the batch's logits and their strides.
struct HeadRows {
  const at::Tensor& hidden;      // (N, C) of the policy
  const at::Tensor& ref_hidden;  // (N, C') of the reference; undefined without one
  Batch batch;                   // rows, vocab_size, and the per-row arrays
};

/// Loss and metrics of the rows. Writes dhidden (N, C) and adds to dweight (V, C) float32.
Metrics fused_head_loss(const ops::Backend& ops, const HeadRows& rows, const ops::Linear& weight,
                        const ops::Linear& ref_weight, const Objective& objective, std::int64_t chunk_rows,
                        const Control& control, at::Tensor& dhidden, at::Tensor& dweight);

/// log p(token_ids[i]) and entropy of every row, under softmax(logits / temperature). row_names (N): the
/// numbers of the rows in errors.
void fused_head_logprobs(const ops::Backend& ops, const at::Tensor& hidden, const ops::Linear& weight,
                         const std::int32_t* token_ids, const std::int64_t* row_names, double temperature,
                         std::int64_t chunk_rows, const Control& control, float* logprobs, float* entropy);

}  // namespace rapo
