// Checks of a call's arguments, made before anything is computed. Each of these functions throws
// Error(kInvalidArgument) that names the field and the value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "error.h"
#include "kernels/objective.h"
#include "types.h"

namespace rapo {

/// Each sequence has at least one token and lies within the model's context and vocabulary. what: the name of
/// the sequences in errors.
void check_sequences(const PackedTokens& packed, const ModelConfig& config, const char* what);

/// Each position is the index of a token in the sequences.
void check_positions(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions);

/// Arguments of generate().
void check_sampling(const PackedTokens& prompts, const SamplingParams& sampling, const ModelConfig& config);

/// Arguments of logprobs().
void check_rows(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions,
                const std::vector<std::int32_t>& token_ids, double temperature, const ModelConfig& config);

/// The per-row arrays and the objective, by the kernels' own checks. They run on the whole batch before it is
/// split, so that errors number the rows as the caller does.
void check_loss(const MicroBatch& batch, const Objective& objective, std::int64_t vocab_size);

/// For gspo: the index of each sequence's first row, and the number of rows; (B + 1). The rows must be in the
/// order of the sequences.
std::vector<std::int32_t> sequence_offsets(const MicroBatch& batch);

/// The per-row arrays in the kernels' form.
Batch rows_of(const MicroBatch& batch);

}  // namespace rapo
