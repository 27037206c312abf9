// From a row's log-prob, entropy and reference log-prob to its share of loss, metrics and gradient: the
// scalar part of the objective, shared by every path.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "error.h"
#include "objective.h"
#include "penalty.h"
#include "surrogate.h"

namespace rapo {

/// What the passes over a row's logits found.
struct RowSums {
  double logprob = 0;      // lp
  double entropy = 0;      // H
  double ref_logprob = 0;  // q[a]; 0 without a penalty
  double full_kl = 0;      // D of a full penalty
};

struct Token {
  bool masked = true;
  double loss = 0, kl = 0, entropy = 0;
  double slope = 0;  // c - alpha s: what multiplies (1[v = a] - p_v) in the gradient
  SurrogateTerm surrogate;
  bool kl_clamped = false;
};

[[noreturn]] inline void fail_row(std::int64_t row, const std::string& what) {
  throw Error(ErrorCode::kNonFinite, "row " + std::to_string(row) + ": " + what);
}

inline Token evaluate_token(const Batch& batch, const Objective& objective, std::int64_t row,
                            const RowSums& sums) {
  if (std::isinf(sums.logprob)) {
    fail_row(row, "the logit of tokenIds[" + std::to_string(row) +
                      "] is -inf, so the policy cannot have sampled it");
  }
  const double n = batch.token_weights[row];
  const double log_rho = batch.old_logprobs ? sums.logprob - batch.old_logprobs[row] : 0;
  Token token;
  token.masked = false;
  token.entropy = sums.entropy;
  token.surrogate = evaluate_surrogate(sums.logprob, log_rho, batch.advantages[row], objective);
  token.slope = token.surrogate.slope;
  if (is_full(objective.penalty)) {
    token.kl = sums.full_kl;
  } else if (objective.penalty != Penalty::kNone) {
    const auto penalty =
        sampled_penalty(objective.penalty, sums.ref_logprob - sums.logprob, token.surrogate.rho,
                        token.surrogate.rho_slope, objective.max_log_ratio);
    token.kl = penalty.value;
    token.kl_clamped = penalty.clamped;
    token.slope -= objective.kl_coef * penalty.slope;
  }
  if (!std::isfinite(token.kl)) {
    fail_row(
        row,
        std::string("the penalty ") + penalty_name(objective.penalty) +
            " is infinite, since policy and reference differ in which tokens have a probability above 0");
  }
  token.loss =
      -n * (token.surrogate.value - objective.kl_coef * token.kl + objective.entropy_coef * token.entropy);
  return token;
}

inline void write_token(const Outputs& outputs, std::int64_t row, const RowSums& sums, const Token& token) {
  const bool on = !token.masked;
  if (outputs.logprobs) outputs.logprobs[row] = on ? static_cast<float>(sums.logprob) : 0;
  if (outputs.ref_logprobs) outputs.ref_logprobs[row] = on ? static_cast<float>(sums.ref_logprob) : 0;
  if (outputs.kl) outputs.kl[row] = on ? static_cast<float>(token.kl) : 0;
  if (outputs.entropy) outputs.entropy[row] = on ? static_cast<float>(token.entropy) : 0;
  if (outputs.ratio) outputs.ratio[row] = on ? static_cast<float>(token.surrogate.rho) : 0;
  if (outputs.clipped) outputs.clipped[row] = on ? static_cast<std::uint8_t>(token.surrogate.clipped) : 0;
}

/// Adds one row; called in row order, so that the sums do not depend on the number of threads.
inline void add_token(Metrics& metrics, const Token& token) {
  if (token.masked) return;
  const double rho = token.surrogate.rho;
  ++metrics.tokens;
  metrics.loss += token.loss;
  metrics.kl_sum += token.kl;
  metrics.entropy_sum += token.entropy;
  metrics.ratio_sum += rho;
  metrics.approx_kl_sum += std::expm1(token.surrogate.log_rho) - token.surrogate.log_rho;
  metrics.clipped_low += token.surrogate.clipped == 1;
  metrics.clipped_high += token.surrogate.clipped == 2;
  metrics.kl_clamped += token.kl_clamped;
  if (rho < metrics.ratio_min) metrics.ratio_min = rho;
  if (rho > metrics.ratio_max) metrics.ratio_max = rho;
}

}  // namespace rapo
