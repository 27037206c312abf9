// The decoding loop: prefill once a prompt, a paged key/value cache, finished sequences replaced at once.
#pragma once

#include "model/qwen2.h"
#include "types.h"

namespace rapo {

/// Arguments are valid (Policy::generate checks them). cache_bytes: see PolicyOptions.
Completions generate(Qwen2& model, const ModelTensors& weights, const ReadyWeights& ready,
                     const PackedTokens& prompts, const SamplingParams& sampling, std::int64_t cache_bytes,
                     Control& control);

/// The same where the weights' operations are ATen's (ops_aten.h): the cache is one block of memory on their
/// device, and a step leaves it for the tokens alone.
Completions generate_on_device(Qwen2& model, const ModelTensors& weights, const ReadyWeights& ready,
                               const PackedTokens& prompts, const SamplingParams& sampling,
                               std::int64_t cache_bytes, Control& control);

}  // namespace rapo
