// Choosing the next token from a row of logits.
#pragma once

#include <cstdint>
#include <vector>

#include "types.h"

namespace rapo {

struct Choice {
  std::int32_t token = 0;
  float logprob = 0;  // under softmax(logits / temperature), before the filters; greedy: temperature 1
};

/// What choose() reuses from row to row; one per thread.
struct SamplerScratch {
  std::vector<float> p;
  std::vector<double> block_sums;
  std::vector<std::int32_t> order;
};

/// Draws one token of a row of V logits (T float or loops::BFloat16): top-k, then top-p of what is left, then
/// min-p; u in [0, 1) decides. Equal probabilities are ordered by id. Greedy (temperature 0): the highest, of
/// equals the lowest id. Throws kNonFinite where the row has no finite maximum.
template <class T>
Choice choose(const T* logits, std::int64_t vocab_size, const SamplingParams& params, double u,
              SamplerScratch& scratch);

}  // namespace rapo
