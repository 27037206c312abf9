// The decoding loop. Each prompt is computed once, its completions step together, and a finished completion
// is replaced by a waiting one at once.
#pragma once

#include "control.h"
#include "model/weights.h"
#include "types.h"

namespace rapo {

/// The arguments must be valid; Policy::generate checks them. cache_bytes: see PolicyOptions.
Completions generate(Model& model, const PackedTokens& prompts, const SamplingParams& sampling,
                     std::int64_t cache_bytes, Control& control);

}  // namespace rapo
