// The ratios of gspo, the only part of the objective in which rows depend on each other.
#pragma once

#include <cstdint>
#include <vector>

#include "host_device.h"
#include "objective.h"

namespace rapo {

template <class T>
RAPO_HOST_DEVICE bool same_entry(const T* values, std::int64_t a, std::int64_t b) {
  return !values || values[a] == values[b];
}

/// Whether two rows have the same values in the arrays for which gspo needs one value per sequence.
RAPO_HOST_DEVICE inline bool alike(const Batch& batch, std::int64_t a, std::int64_t b) {
  bool same = true;
#define RAPO_ALIKE(name, type, js, required, range, alike) \
  if (alike) same = same && same_entry(batch.name, a, b);
  RAPO_ROW_ARRAYS(RAPO_ALIKE)
#undef RAPO_ALIKE
  return same;
}

/// The first unmasked row; `end` if all rows are masked.
RAPO_HOST_DEVICE inline std::int64_t first_unmasked(const Batch& batch, std::int64_t begin,
                                                    std::int64_t end) {
  while (begin < end && batch.token_weights[begin] == 0) ++begin;
  return begin;
}

/// Mean of logprobs[i] - old_logprobs[i] over the unmasked rows of one sequence; 0 without old log-probs.
RAPO_HOST_DEVICE inline double mean_log_ratio(const Batch& batch, const double* logprobs, std::int64_t begin,
                                              std::int64_t end) {
  double sum = 0, count = 0;
  for (std::int64_t i = begin; batch.old_logprobs && i < end; ++i) {
    if (batch.token_weights[i] == 0) continue;
    sum += logprobs[i] - batch.old_logprobs[i];
    ++count;
  }
  return count > 0 ? sum / count : 0;
}

/// (N) for each row the mean of logprobs[i] - old_logprobs[i] over the unmasked rows of the row's sequence; 0
/// in masked rows, and without old log-probs. logprobs (N): entries of masked rows are not read. Throws
/// kInvalidArgument if sequence_offsets do not cover the rows, or if the unmasked rows of a sequence differ
/// in token weight, advantage or policy weight, since the gradient then cannot be shared out among tokens.
std::vector<double> sequence_log_ratios(const Batch& batch, const std::vector<double>& logprobs);

}  // namespace rapo
