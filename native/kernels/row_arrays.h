// The one list of the arrays with an entry for each row of a batch. The members of Batch and Outputs, their
// copies, parts, checks and mirrors on a device, and the reading of JS objects all expand from it;
// lib/loss/rows.ts is the same list for TypeScript. Every array is (N).
#pragma once

#include <cstdint>

namespace rapo {

/// What an entry of an unmasked row must be.
enum class RowRange : std::uint8_t { kTokenId, kFinite, kNotNegative, kUnit };

/// X(member, type of an entry, name in JS, required, range, alike): a required array may not be left out; the
/// entries of an `alike` array must agree within a sequence under gspo.
/// - token_weights n_t: mask x aggregation weight, over the whole batch; 0 masks the row
/// - advantages A
/// - ref_weights phi; left out: 1
/// - old_logprobs o_t; left out: the policy's own, i.e. ratio 1
/// - policy_weights what g_t is multiplied with; left out: 1
#define RAPO_ROW_ARRAYS(X)                                      \
  X(token_ids, std::int32_t, "tokenIds", true, kTokenId, false) \
  X(token_weights, float, "tokenWeights", true, kFinite, true)  \
  X(advantages, float, "advantages", true, kFinite, true)       \
  X(ref_weights, float, "refWeights", false, kUnit, false)      \
  X(old_logprobs, float, "oldLogprobs", false, kFinite, false)  \
  X(policy_weights, float, "policyWeights", false, kNotNegative, true)

/// X(member, type of an entry, name in JS): written for each row where wanted; masked rows get 0.
/// - logprobs log p[a]
/// - ref_logprobs q[a], after reweighting; 0 without a penalty
/// - kl D_t, entropy H_t
/// - ratio rho_t; gspo: the sequence's
/// - clipped 0 no, 1 cut off at the lower bound, 2 at the upper
#define RAPO_ROW_OUTPUTS(X)             \
  X(logprobs, float, "logprobs")        \
  X(ref_logprobs, float, "refLogprobs") \
  X(kl, float, "kl")                    \
  X(entropy, float, "entropy")          \
  X(ratio, float, "ratio")              \
  X(clipped, std::uint8_t, "clipped")

}  // namespace rapo
