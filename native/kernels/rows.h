// Parts of a batch.
#pragma once

#include "objective.h"

namespace rapo {

/// Rows [first, first + rows) of the batch's arrays with one entry a row, all of which may lie on a device
/// (row_names aside). The logits and the sequences stay as they are: the caller says which ones belong to the
/// part.
inline Batch rows_from(const Batch& batch, std::int64_t first, std::int64_t rows) {
  const auto advance = [first](auto*& array) {
    if (array) array += first;
  };
  Batch part = batch;
  part.rows = rows;
  advance(part.token_ids);
  advance(part.token_weights);
  advance(part.advantages);
  advance(part.ref_weights);
  advance(part.old_logprobs);
  advance(part.policy_weights);
  advance(part.sequence_log_ratios);
  advance(part.row_names);
  return part;
}

/// The same of what is written for each row; the gradient stays as it is.
inline Outputs rows_from(const Outputs& outputs, std::int64_t first) {
  const auto advance = [first](auto*& array) {
    if (array) array += first;
  };
  Outputs part = outputs;
  advance(part.logprobs);
  advance(part.ref_logprobs);
  advance(part.kl);
  advance(part.entropy);
  advance(part.ratio);
  advance(part.clipped);
  return part;
}

}  // namespace rapo
