// The door: everything but the logits' values is checked here, before anything is written.
#pragma once

#include <cstdint>

#include "loss.h"

namespace rapo {

void validate_objective(const Objective& objective);
void validate_loss(const Batch& batch, const Objective& objective, const Outputs& outputs, bool oracle);
void validate_gather(const LogitRows& logits, const std::int32_t* token_ids, double temperature,
                     const GatherOutputs& outputs, bool oracle);

/// Throws kNonFinite naming the row, and the first offending token id in it.
[[noreturn]] void throw_bad_logits(const char* field, std::int64_t row, const void* data, DType dtype,
                                   std::int64_t vocab_size);

}  // namespace rapo
