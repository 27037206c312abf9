// What a call is given, checked before anything is computed. Each of these throws Error(kInvalidArgument)
// that names the field and the value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "error.h"
#include "kernels/objective.h"
#include "types.h"

namespace rapo {

/// Packed sequences of at least one token, within the model's context and vocabulary. what: their name in
/// errors.
void check_sequences(const PackedTokens& packed, const ModelConfig& config, const char* what);

/// Each position lies within the sequences.
void check_positions(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions);

/// The prompts and how they are to be continued.
void check_sampling(const PackedTokens& prompts, const SamplingParams& sampling, const ModelConfig& config);

/// What logprobs() is given.
void check_rows(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions,
                const std::vector<std::int32_t>& token_ids, double temperature, const ModelConfig& config);

/// The per-row arrays and the objective, by the kernels' own checks: errors then count rows as the caller
/// does.
void check_loss(const MicroBatch& batch, const Objective& objective, std::int64_t vocab_size);

/// The first row of each sequence, and the number of rows: (B + 1), for gspo. Rows must come in the
/// sequences' order.
std::vector<std::int32_t> sequence_offsets(const MicroBatch& batch);

/// The per-row arrays as the kernels take them.
Batch rows_of(const MicroBatch& batch);

}  // namespace rapo
