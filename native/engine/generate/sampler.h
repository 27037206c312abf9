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

/// Samples the next token of each row of logits (B, V) with the random numbers u (B) float64 in [0, 1). The
/// filters are top-k, then top-p of what is left, then min-p; equal probabilities are ordered by id. With
/// temperature 0 (greedy) the token with the highest logit is taken, and of equal logits the lowest id.
/// Returns (2, B) float64 on the logits' device: the tokens and their log-probs. The log-prob is NaN if the
/// row has no finite maximum. sample_cpu is for the CPU; sample_aten uses ATen calls, works on any device and
/// gives the same result except for rounding.
at::Tensor sample_cpu(const at::Tensor& logits, const at::Tensor& u, const SamplingParams& params);
at::Tensor sample_aten(const at::Tensor& logits, const at::Tensor& u, const SamplingParams& params);

/// Reads a sampler's result. On a device this waits for the result.
std::vector<Choice> choices_of(const at::Tensor& sampled);
/// A CPU tensor that shares the memory of `values`.
at::Tensor tensor_of(const std::vector<double>& values);

}  // namespace rapo
