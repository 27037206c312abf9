// Choosing the next token from a row of logits.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "policy.h"

namespace rapo {

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"): four random words from a key
/// and a counter, with no state in between.
std::array<std::uint32_t, 4> philox(std::uint64_t key, std::uint64_t counter_high, std::uint64_t counter_low);

/// In [0, 1), 53 bits.
double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);

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
