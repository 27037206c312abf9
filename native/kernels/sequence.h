// gspo's ratios: the one thing in the objective that ties rows together.
#pragma once

#include <vector>

#include "objective.h"

namespace rapo {

/// (N) mean of logprobs[i] - old_logprobs[i] over the unmasked rows of each row's sequence; 0 without old
/// log-probs, and in masked rows. logprobs (N): entries of masked rows are not read. Checks the batch's sequence_offsets.
/// Throws kInvalidArgument where they do not cover the rows, or the unmasked rows of a sequence differ in
/// token weight, advantage or policy weight: the gradient then has no share per token.
std::vector<double> sequence_log_ratios(const Batch& batch, const std::vector<double>& logprobs);

}  // namespace rapo
