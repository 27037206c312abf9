// The scalar part of the objective: from a row's log-prob, entropy and reference log-prob to its share of
// loss, metrics and gradient. The CPU and CUDA paths share it.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "error.h"
#include "host_device.h"
#include "objective.h"
#include "penalty.h"
#include "surrogate.h"

namespace rapo {

/// The results of the passes over a row's logits.
struct RowSums {
  double logprob = 0;      // lp
  double entropy = 0;      // H
  double ref_logprob = 0;  // q[a]; 0 without a penalty
  double full_kl = 0;      // D of a full penalty
};

enum class TokenFault : std::uint8_t {
  kNone,
  kRuledOut,         // the policy gives the sampled token no mass
  kInfinitePenalty,  // policy and reference differ in which tokens have a probability above 0
};

struct Token {
  bool masked = true;
  double loss = 0, kl = 0, entropy = 0;
  double slope = 0;      // w c - alpha s: factor of (1[v = a] - p_v) in the gradient
  double ratio = 1;      // the ratio that the policy term clips: rho, or the sequence's ratio
  double approx_kl = 0;  // rho - 1 - log rho
  int clipped = 0;       // as in SurrogateTerm
  bool kl_clamped = false;
  TokenFault fault = TokenFault::kNone;
};

/// All values of the row. If there is a fault, only `fault` is set.
RAPO_HOST_DEVICE inline Token token_of(const Batch& batch, const Objective& objective, std::int64_t row,
                                       const RowSums& sums) {
  Token token;
  if (std::isinf(sums.logprob)) {
    token.fault = TokenFault::kRuledOut;
    return token;
  }
  const double n = batch.token_weights[row];
  const double policy_weight = batch.policy_weights ? batch.policy_weights[row] : 1;
  const Ratio rho(batch.old_logprobs ? sums.logprob - batch.old_logprobs[row] : 0, objective.max_log_ratio);
  const Ratio ratio = objective.surrogate == Surrogate::kGspo
                          ? Ratio(batch.sequence_log_ratios[row], objective.max_log_ratio)
                          : rho;
  const auto surrogate = evaluate_surrogate(sums.logprob, ratio, batch.advantages[row], objective);
  token.masked = false;
  token.entropy = sums.entropy;
  token.ratio = ratio.value;
  token.approx_kl = std::expm1(rho.log) - rho.log;
  token.clipped = surrogate.clipped;
  token.slope = policy_weight * surrogate.slope;
  if (is_full(objective.penalty)) {
    token.kl = sums.full_kl;
  } else if (objective.penalty != Penalty::kNone) {
    const auto penalty = sampled_penalty(objective.penalty, sums.ref_logprob - sums.logprob, rho.value,
                                         rho.slope, objective.max_log_ratio);
    token.kl = penalty.value;
    token.kl_clamped = penalty.clamped;
    token.slope -= objective.kl_coef * penalty.slope;
  }
  if (!std::isfinite(token.kl)) {
    token = Token{};
    token.fault = TokenFault::kInfinitePenalty;
    return token;
  }
  token.loss = -n * (policy_weight * surrogate.value - objective.kl_coef * token.kl +
                     objective.entropy_coef * token.entropy);
  return token;
}

/// Throws kNonFinite for a row's fault.
[[noreturn]] inline void throw_token_fault(TokenFault fault, Penalty penalty, std::int64_t row) {
  const auto number = std::to_string(row);
  throw Error(ErrorCode::kNonFinite,
              "row " + number + ": " +
                  (fault == TokenFault::kRuledOut
                       ? "the logit of tokenIds[" + number + "] is -inf, so the policy cannot have sampled it"
                       : std::string("the penalty ") + penalty_name(penalty) +
                             " is infinite, since policy and reference differ in which tokens have a "
                             "probability above 0"));
}

inline Token evaluate_token(const Batch& batch, const Objective& objective, std::int64_t row,
                            const RowSums& sums) {
  const Token token = token_of(batch, objective, row, sums);
  if (token.fault != TokenFault::kNone) throw_token_fault(token.fault, objective.penalty, batch.name_of(row));
  return token;
}

RAPO_HOST_DEVICE inline void write_token(const Outputs& outputs, std::int64_t row, const RowSums& sums,
                                         const Token& token) {
  const bool on = !token.masked;
  if (outputs.logprobs) outputs.logprobs[row] = on ? static_cast<float>(sums.logprob) : 0;
  if (outputs.ref_logprobs) outputs.ref_logprobs[row] = on ? static_cast<float>(sums.ref_logprob) : 0;
  if (outputs.kl) outputs.kl[row] = on ? static_cast<float>(token.kl) : 0;
  if (outputs.entropy) outputs.entropy[row] = on ? static_cast<float>(token.entropy) : 0;
  if (outputs.ratio) outputs.ratio[row] = on ? static_cast<float>(token.ratio) : 0;
  if (outputs.clipped) outputs.clipped[row] = on ? static_cast<std::uint8_t>(token.clipped) : 0;
}

/// Adds one row. Rows must be added in order, so that the sums do not depend on the number of threads.
RAPO_HOST_DEVICE inline void add_token(Metrics& metrics, const Token& token) {
  if (token.masked) return;
  ++metrics.tokens;
  metrics.loss += token.loss;
  metrics.kl_sum += token.kl;
  metrics.entropy_sum += token.entropy;
  metrics.ratio_sum += token.ratio;
  metrics.approx_kl_sum += token.approx_kl;
  metrics.clipped_low += token.clipped == 1;
  metrics.clipped_high += token.clipped == 2;
  metrics.kl_clamped += token.kl_clamped;
  if (token.ratio < metrics.ratio_min) metrics.ratio_min = token.ratio;
  if (token.ratio > metrics.ratio_max) metrics.ratio_max = token.ratio;
}

}  // namespace rapo
