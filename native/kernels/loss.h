// The objective's loss and gradient for full logits (rapo.md sections 3 to 5).
#pragma once

#include "control.h"
#include "objective.h"

namespace rapo {

/// loss = -sum_t n_t (g_t - alpha D_t + beta H_t) and, where wanted, its gradient with respect to the policy's
/// raw logits and the per-token values. Every normaliser is a max-subtracted log-sum-exp; the phi-reweighted one
/// is computed in the same pass over the reference as the plain one.
///
/// The instruction set is chosen at run time (cpu/select.cpp). Results are the same bits for any thread count.
/// Throws Error: kInvalidArgument (shape, token id, weight out of range), kNonFinite (names the row), kAborted.
Metrics policy_loss(const Batch& batch, const Objective& objective, const Outputs& outputs,
                    const Control* control = nullptr);

namespace reference {

/// The oracle: the same by plain loops in double precision. Slow; kept for tests and for reading.
Metrics policy_loss(const Batch& batch, const Objective& objective, const Outputs& outputs);

}  // namespace reference
}  // namespace rapo
