#include "model/checks.h"

#include <cmath>
#include <string>

#include "kernels/validate.h"

namespace rapo {
namespace {

/// The array must have one entry per row.
template <class T>
void check_length(const std::vector<T>& values, const char* name, std::size_t rows, bool optional = false) {
  if (values.size() == rows || (optional && values.empty())) return;
  invalid(std::string(name) + " has " + std::to_string(values.size()) + " entries, rowPositions " +
          std::to_string(rows));
}

}  // namespace

void check_sequences(const PackedTokens& packed, const ModelConfig& config, const char* what) {
  const auto& offsets = packed.offsets;
  const std::string name(what);
  if (offsets.size() < 2 || offsets.front() != 0 ||
      offsets.back() != static_cast<std::int64_t>(packed.token_ids.size())) {
    invalid(name + ".offsets must go from 0 to the number of token ids, " +
            std::to_string(packed.token_ids.size()) + ", with at least one sequence");
  }
  for (std::size_t b = 0; b + 1 < offsets.size(); ++b) {
    const std::int64_t length = offsets[b + 1] - offsets[b];
    if (length < 1) invalid(name + "[" + std::to_string(b) + "] must hold at least one token");
    if (length > config.max_position_embeddings) {
      invalid(name + "[" + std::to_string(b) + "] has " + std::to_string(length) +
              " tokens, the model's context is " + std::to_string(config.max_position_embeddings));
    }
  }
  for (std::size_t i = 0; i < packed.token_ids.size(); ++i) {
    if (packed.token_ids[i] < 0 || packed.token_ids[i] >= config.vocab_size) {
      invalid(name + ".tokenIds[" + std::to_string(i) + "] is " + std::to_string(packed.token_ids[i]) +
              ", the vocabulary has " + std::to_string(config.vocab_size));
    }
  }
}

void check_positions(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions) {
  const auto total = static_cast<std::int64_t>(sequences.token_ids.size());
  for (std::size_t i = 0; i < row_positions.size(); ++i) {
    if (row_positions[i] < 0 || row_positions[i] >= total) {
      invalid("rowPositions[" + std::to_string(i) + "] is " + std::to_string(row_positions[i]) +
              ", there are " + std::to_string(total) + " tokens");
    }
  }
}

void check_sampling(const PackedTokens& prompts, const SamplingParams& sampling, const ModelConfig& config) {
  check_sequences(prompts, config, "prompts");
  if (sampling.n < 1) invalid("n must be at least 1, got " + std::to_string(sampling.n));
  if (sampling.max_new_tokens < 1)
    invalid("maxNewTokens must be at least 1, got " + std::to_string(sampling.max_new_tokens));
  if (!(sampling.temperature >= 0) || std::isinf(sampling.temperature)) invalid("temperature must be >= 0");
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) invalid("topP must be in (0, 1]");
  if (sampling.top_k < 0) invalid("topK must be at least 0");
  if (!(sampling.min_p >= 0 && sampling.min_p < 1)) invalid("minP must be in [0, 1)");
  if (sampling.turn < 0) invalid("turn must be at least 0");
  if (sampling.max_batch < 0) invalid("maxBatch must be at least 0");
  if (sampling.first_completion < 0) invalid("firstCompletion must be at least 0");
  const std::size_t prompt_count = prompts.offsets.size() - 1;
  if (sampling.seeds.size() != 1 && sampling.seeds.size() != prompt_count) {
    invalid("seed has " + std::to_string(sampling.seeds.size()) + " entries, there are " +
            std::to_string(prompt_count) + " prompts");
  }
  const auto& limits = sampling.max_new_tokens_per_prompt;
  if (!limits.empty() && limits.size() != prompt_count) {
    invalid("maxNewTokensPerPrompt has " + std::to_string(limits.size()) + " entries, there are " +
            std::to_string(prompt_count) + " prompts");
  }
  for (std::size_t p = 0; p < limits.size(); ++p) {
    if (limits[p] >= 1 && limits[p] <= sampling.max_new_tokens) continue;
    invalid("maxNewTokensPerPrompt[" + std::to_string(p) + "] is " + std::to_string(limits[p]) +
            ", expected a number from 1 to maxNewTokens, " + std::to_string(sampling.max_new_tokens));
  }
  for (const auto id : sampling.stop_token_ids) {
    if (id < 0 || id >= config.vocab_size) {
      invalid("stopTokenIds contains " + std::to_string(id) + ", the vocabulary has " +
              std::to_string(config.vocab_size));
    }
  }
  const auto count = static_cast<std::int64_t>(prompts.offsets.size()) - 1;
  std::int64_t total = 0;
  if (__builtin_mul_overflow(count, sampling.n, &total) || total > (std::int64_t{1} << 31)) {
    invalid("n is " + std::to_string(sampling.n) + ": more than 2^31 completions");
  }
  for (std::size_t p = 0; p + 1 < prompts.offsets.size(); ++p) {
    const std::int64_t length = prompts.offsets[p + 1] - prompts.offsets[p];
    if (sampling.limit(p) > config.max_position_embeddings - length) {
      invalid("prompts[" + std::to_string(p) + "] has " + std::to_string(length) +
              " tokens; with maxNewTokens = " + std::to_string(sampling.limit(p)) +
              " that exceeds the model's context of " + std::to_string(config.max_position_embeddings));
    }
  }
}

void check_rows(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions,
                const std::vector<std::int32_t>& token_ids, double temperature, const ModelConfig& config) {
  check_sequences(sequences, config, "sequences");
  check_positions(sequences, row_positions);
  check_length(token_ids, "tokenIds", row_positions.size());
  for (std::size_t i = 0; i < token_ids.size(); ++i) {
    if (token_ids[i] < 0 || token_ids[i] >= config.vocab_size) {
      invalid("tokenIds[" + std::to_string(i) + "] is " + std::to_string(token_ids[i]) +
              ", the vocabulary has " + std::to_string(config.vocab_size));
    }
  }
  if (!(temperature > 0) || std::isinf(temperature)) invalid("temperature must be > 0");
}

void check_loss(const MicroBatch& batch, const Objective& objective, std::int64_t vocab_size) {
  const std::size_t rows = batch.row_positions.size();
#define RAPO_LENGTH(name, type, js, required, ...) check_length(batch.rows.name, js, rows, !(required));
  RAPO_ROW_ARRAYS(RAPO_LENGTH)
#undef RAPO_LENGTH
  const float logits = 0;  // the checks only ask whether these two are present
  const double ratios = 0;
  Batch b = rows_of(batch);
  b.vocab_size = b.logits_stride = b.ref_stride = vocab_size;
  b.logits = &logits;
  b.ref_logits = objective.penalty == Penalty::kNone ? nullptr : &logits;
  b.sequence_log_ratios = objective.surrogate == Surrogate::kGspo ? &ratios : nullptr;
  validate_loss(b, objective, {}, false);
}

std::vector<std::int32_t> sequence_offsets(const MicroBatch& batch) {
  std::vector<std::int32_t> offsets{0};
  std::size_t row = 0;
  for (std::size_t b = 0; b + 1 < batch.sequences.offsets.size(); ++b) {
    while (row < batch.row_positions.size() && batch.row_positions[row] < batch.sequences.offsets[b + 1]) {
      if (row > 0 && batch.row_positions[row] < batch.row_positions[row - 1]) {
        invalid("rowPositions[" + std::to_string(row) + "] is " + std::to_string(batch.row_positions[row]) +
                ", less than the one before it: gspo needs them in the order of the sequences");
      }
      ++row;
    }
    offsets.push_back(static_cast<std::int32_t>(row));
  }
  return offsets;
}

Batch rows_of(const MicroBatch& batch) {
  Batch b;
  b.rows = static_cast<std::int64_t>(batch.rows.token_ids.size());
  batch.rows.attach(b);
  return b;
}

}  // namespace rapo
