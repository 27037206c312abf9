// The decoding loop. Each prompt is computed once, its completions step together, and a finished completion
// is replaced by a waiting one at once.
#pragma once

#include "control.h"
#include "generate/kept.h"
#include "model/weights.h"
#include "types.h"

namespace rapo {

/// The arguments must be valid; Policy::generate checks them. cache_bytes: see PolicyOptions. kept: what the
/// last turn left, where sampling.turn > 1; becomes what this turn leaves, of as many bytes at most.
Completions generate(Model& model, const PackedTokens& prompts, const SamplingParams& sampling,
                     std::int64_t cache_bytes, KeptSequences& kept, Control& control);

}  // namespace rapo
