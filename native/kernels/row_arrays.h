// The one list of the arrays with one entry per row of a batch. These expand from it: the members of Batch
// and Outputs; their copies, parts, checks and device mirrors; the reading of JS objects. lib/loss/rows.ts is
// the same list for TypeScript. Every array is (N).
#pragma once

#include <cstdint>

namespace rapo {

/// The range of an entry in an unmasked row.
enum class RowRange : std::uint8_t { kTokenId, kFinite, kNotNegative, kUnit };

/// X(member, type of an entry, name in JS, required, range, alike). A required array must be given. Under
/// gspo the entries of an `alike` array must be equal within a sequence.
/// - token_weights n_t: mask x aggregation weight, over the whole batch; 0 masks the row
/// - advantages A
/// - ref_weights phi; 1 if left out
/// - old_logprobs o_t; if left out the policy's own log-probs, so that the ratio is 1
/// - policy_weights w_t, the factor of g_t; 1 if left out
#define RAPO_ROW_ARRAYS(X)                                      \
  X(token_ids, std::int32_t, "tokenIds", true, kTokenId, false) \
  X(token_weights, float, "tokenWeights", true, kFinite, true)  \
  X(advantages, float, "advantages", true, kFinite, true)       \
  X(ref_weights, float, "refWeights", false, kUnit, false)      \
  X(old_logprobs, float, "oldLogprobs", false, kFinite, false)  \
  X(policy_weights, float, "policyWeights", false, kNotNegative, true)

/// X(member, type of an entry, name in JS). Each array is written if wanted; masked rows get 0.
/// - logprobs log p[a]
/// - ref_logprobs q[a], after reweighting; 0 without a penalty
/// - kl D_t, entropy H_t
/// - ratio rho_t; for gspo the sequence's ratio
/// - clipped 0: not clipped; 1: cut off at the lower bound; 2: at the upper bound
#define RAPO_ROW_OUTPUTS(X)             \
  X(logprobs, float, "logprobs")        \
  X(ref_logprobs, float, "refLogprobs") \
  X(kl, float, "kl")                    \
  X(entropy, float, "entropy")          \
  X(ratio, float, "ratio")              \
  X(clipped, std::uint8_t, "clipped")

}  // namespace rapo
