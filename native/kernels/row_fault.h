// What can be wrong with a row's entries; the logits themselves aside.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "objective.h"
#include "penalty.h"

namespace rapo {

enum class RowFault : std::uint8_t {
  kNone,
  kTokenWeight,
  kTokenId,
  kAdvantage,
  kOldLogprob,
  kPolicyWeight,
  kRefWeight,
  kReweighted,  // a ref weight other than 1 where the penalty takes the reference as it is
};

/// The first one in the order above. In a masked row only the token weight is looked at.
RAPO_HOST_DEVICE inline RowFault row_fault(const Batch& batch, const Objective& objective, std::int64_t i) {
  const float n = batch.token_weights[i];
  if (!std::isfinite(n)) return RowFault::kTokenWeight;
  if (n == 0) return RowFault::kNone;
  if (batch.token_ids[i] < 0 || batch.token_ids[i] >= batch.vocab_size) return RowFault::kTokenId;
  if (!std::isfinite(batch.advantages[i])) return RowFault::kAdvantage;
  if (batch.old_logprobs && !std::isfinite(batch.old_logprobs[i])) return RowFault::kOldLogprob;
  if (batch.policy_weights && !(batch.policy_weights[i] >= 0 && std::isfinite(batch.policy_weights[i]))) {
    return RowFault::kPolicyWeight;
  }
  if (!batch.ref_weights) return RowFault::kNone;
  const float phi = batch.ref_weights[i];
  if (!(phi >= 0 && phi <= 1)) return RowFault::kRefWeight;
  if (phi != 1 && (objective.penalty == Penalty::kNone || is_reverse(objective.penalty))) {
    return RowFault::kReweighted;
  }
  return RowFault::kNone;
}

}  // namespace rapo
