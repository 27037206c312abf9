// The decoding loop: each prompt is computed once, its completions step together, and finished ones are
// replaced at once.
#pragma once

#include "control.h"
#include "model/weights.h"
#include "types.h"

namespace rapo {

/// Arguments are valid (Policy::generate checks them). cache_bytes: see PolicyOptions.
Completions generate(Model& model, const PackedTokens& prompts, const SamplingParams& sampling,
                     std::int64_t cache_bytes, Control& control);

}  // namespace rapo
