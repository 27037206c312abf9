// Choosing the next token from a row of logits.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/aten.h"
#include "types.h"

namespace rapo {

struct Choice {
  std::int32_t token = 0;
  float logprob = 0;  // under softmax(logits / temperature), before the filters; greedy: temperature 1
};

/// The next token of each row of logits (B, V): top-k, then top-p of what is left, then min-p; u (B) float64
/// in [0, 1) decides. Equal probabilities are ordered by id. Greedy (temperature 0): the highest, of equals
/// the lowest id.
/// -> (2, B) float64 on the logits' device: the tokens, and their log-probs, NaN where a row has no finite
/// maximum. On the CPU, and, with the same result but for rounding, in ATen calls for any device.
at::Tensor sample_cpu(const at::Tensor& logits, const at::Tensor& u, const SamplingParams& params);
at::Tensor sample_aten(const at::Tensor& logits, const at::Tensor& u, const SamplingParams& params);

/// What a sampler returned. This waits for the device.
std::vector<Choice> choices_of(const at::Tensor& sampled);
/// Numbers as a CPU tensor that shares their memory.
at::Tensor tensor_of(const std::vector<double>& values);

}  // namespace rapo
