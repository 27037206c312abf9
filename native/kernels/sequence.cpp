#include "sequence.h"

#include <cmath>
#include <string>

#include "error.h"

namespace rapo {
namespace {

void check_offsets(const Batch& batch) {
  const auto entry = [&](std::int64_t b) {
    return "sequenceOffsets[" + std::to_string(b) + "] is " + std::to_string(batch.sequence_offsets[b]);
  };
  if (batch.sequence_offsets[0] != 0) invalid(entry(0) + ", expected 0");
  for (std::int64_t b = 0; b < batch.sequences; ++b) {
    if (batch.sequence_offsets[b + 1] < batch.sequence_offsets[b]) {
      invalid(entry(b + 1) + ", expected at least the entry before it, " +
              std::to_string(batch.sequence_offsets[b]));
    }
  }
  if (batch.sequence_offsets[batch.sequences] != batch.rows) {
    invalid(entry(batch.sequences) + ", expected the number of rows, " + std::to_string(batch.rows));
  }
}

template <class T>
void check_uniform(const char* field, const T* values, std::int64_t row, std::int64_t first) {
  if (same_entry(values, row, first)) return;
  invalid(std::string(field) + "[" + std::to_string(row) + "] is " + std::to_string(values[row]) + " and [" +
          std::to_string(first) + "] is " + std::to_string(values[first]) +
          ", but gspo needs one value for all rows of a sequence");
}

}  // namespace

std::vector<double> sequence_log_ratios(const Batch& batch, const std::vector<double>& logprobs) {
  check_offsets(batch);
  std::vector<double> ratios(static_cast<std::size_t>(batch.rows), 0.0);
  for (std::int64_t b = 0; b < batch.sequences; ++b) {
    const std::int64_t begin = batch.sequence_offsets[b], end = batch.sequence_offsets[b + 1];
    const std::int64_t first = first_unmasked(batch, begin, end);
    for (std::int64_t i = first; i < end; ++i) {
      if (batch.token_weights[i] == 0) continue;
#define RAPO_ALIKE(name, type, js, required, range, alike) \
  if (alike) check_uniform(js, batch.name, i, first);
      RAPO_ROW_ARRAYS(RAPO_ALIKE)
#undef RAPO_ALIKE
    }
    const double mean = mean_log_ratio(batch, logprobs.data(), begin, end);
    for (std::int64_t i = first; i < end; ++i) {
      if (batch.token_weights[i] != 0) ratios[i] = mean;
    }
  }
  return ratios;
}

}  // namespace rapo
